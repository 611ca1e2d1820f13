"""Requests as a decision log has them: what decisions see, and what many calls have in common."""

from typing import NamedTuple

from modelyard.inference.v1 import decision_log_pb2 as pb
from modelyard.inference.v1 import inference_pb2
from services.domain.caching import CachePolicy
from services.domain.model import TensorMeta
from services.domain.request import InferCall, Preference, RouteOptions

PREFERENCES = {
    Preference.BALANCED: inference_pb2.PREFERENCE_BALANCED,
    Preference.LATENCY: inference_pb2.PREFERENCE_LATENCY,
    Preference.COST: inference_pb2.PREFERENCE_COST,
    Preference.QUALITY: inference_pb2.PREFERENCE_QUALITY,
}
CACHES = {
    CachePolicy.DEFAULT: inference_pb2.CACHE_POLICY_UNSPECIFIED,
    CachePolicy.BYPASS: inference_pb2.CACHE_POLICY_BYPASS,
    CachePolicy.REFRESH: inference_pb2.CACHE_POLICY_REFRESH,
}


class Profile(NamedTuple):
    """What decisions see of a request, but for what is its own."""

    name: str
    version: str
    inputs: tuple[TensorMeta, ...]
    options: RouteOptions
    timeout_s: float | None


def profile_of(call: InferCall) -> Profile:
    """Of a call."""
    return Profile(call.name, call.version, call.inputs, call.options, call.timeout_s)


def profile_to(number: int, profile: Profile) -> pb.LogProfile:
    """It as the file refers to it by a number."""
    options = profile.options
    return pb.LogProfile(
        number=number,
        name=profile.name,
        version=profile.version,
        inputs=[
            pb.LogTensor(
                name=each.name,
                datatype=each.datatype,
                shape=each.shape,
                raw_bytes=each.raw_bytes,
                typed_count=each.typed_count,
            )
            for each in profile.inputs
        ],
        options=inference_pb2.RouteOptions(
            max_cost_microusd=options.max_cost_microusd,
            min_quality=options.min_quality,
            prefer=PREFERENCES[options.prefer],
            zone=options.zone,
            idempotent=options.idempotent,
            explain=options.explain,
            tenant=options.tenant,
            tier=options.tier,
            priority=options.priority,
            session=options.session,
            cache=CACHES[options.cache],
            hedge=options.hedge,
            labels=dict(options.labels),
            domain=options.domain,
            complexity=options.complexity,
        ),
        timeout_s=profile.timeout_s,
    )
