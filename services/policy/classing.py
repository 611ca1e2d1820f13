"""Which rules a call lives by: what its caller asks for, held to what its tenant's policy allows."""

from services.domain.errors import Fault
from services.domain.objects import Policy, Tenant
from services.domain.rules import NO_RULES, Rules
from services.domain.service_class import LAST_BAND, ORDINARY, ServiceClass
from services.domain.tenancy import Preemption, Tier

DEFAULT_POLICY = "default"
"""Name of the policy that calls without a tenant live by, where there is one."""


def rules_of(
    policy: Policy | None, tenant: Tenant | None, *, tenant_name: str, tier_name: str, priority: int
) -> Rules | Fault:
    """The rules of a call.

    Args:
        policy: The policy of its route, else of its tenant, else the default one; None if there is none.
        tenant: Its tenant; None if it names none, or none that is there.
        tenant_name: The tenant that it names.
        tier_name: The tier that it asks for; empty asks for none.
        priority: As in the Open Inference Protocol, 1 the most urgent; 0 asks for none. Taken as a band.

    Returns:
        Those of the tier that is asked for, else of the most urgent one of the asked priority or a later one, else
        of the tenant's, else of the policy's default; never of an earlier band than the tenant's own. Or else what is
        wrong.
    """
    if tenant_name and tenant is None:
        return Fault("route.tenant", f"there is no tenant '{tenant_name}'")
    if not 0 <= priority <= 2**31:
        return Fault("route.priority", f"{priority} must be 0 or more")
    if policy is None:
        if tier_name:
            return Fault("route.tier", f"no policy has a tier '{tier_name}' for this call")
        if not priority and not tenant_name:
            return NO_RULES
        band = min(priority, LAST_BAND) if priority else ORDINARY.band
        return Rules(ServiceClass(tenant_name, band=band), tenant=tenant)
    own = (tenant and _named(policy, tenant.tier)) or _named(policy, policy.default_tier) or _last(policy)
    if tier_name:
        tier = _named(policy, tier_name)
        if tier is None:
            known = ", ".join(each.name for each in policy.tiers)
            return Fault("route.tier", f"'{tier_name}' is no tier of policy '{policy.metadata.name}': {known}")
        if tenant is not None and tier.priority_band < own.priority_band:
            return Fault(
                "route.tier", f"tenant '{tenant_name}' is of tier '{own.name}', and '{tier_name}' goes before it"
            )
    else:
        tier = own
        if priority:
            later = [each for each in policy.tiers if each.priority_band >= max(priority, _first(own, tenant))]
            tier = min(later, key=lambda each: each.priority_band, default=_last(policy))
    return Rules(_class(tenant_name, tier), policy, tier, tenant)


def _first(own: Tier, tenant: Tenant | None) -> int:
    """The earliest band that the call may have."""
    return 1 if tenant is None else own.priority_band


def _named(policy: Policy, name: str) -> Tier | None:
    return next((tier for tier in policy.tiers if tier.name == name), None)


def _last(policy: Policy) -> Tier:
    """The last of the lowest band."""
    return max(enumerate(policy.tiers), key=lambda item: (item[1].priority_band, item[0]))[1]


def _class(tenant_name: str, tier: Tier) -> ServiceClass:
    return ServiceClass(
        tenant=tenant_name,
        tier=tier.name,
        band=tier.priority_band,
        reserved_share=tier.reserved_share,
        weight=tier.weight,
        sheddable=tier.sheddable,
        preempts=tier.preemption is Preemption.LOWER_BANDS,
    )
