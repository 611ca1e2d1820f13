"""protobuf ⇄ domain for the kind Template; what it makes stays closed, as bytes that are equal for equal objects."""

from collections.abc import Iterable

from modelyard.registry.v1 import objects_pb2 as pb
from services.domain.objects import Metadata, Template
from services.domain.templates import Binding, Parameter, ParameterType

_TYPES = {
    ParameterType.TEXT: pb.TEMPLATE_PARAMETER_TYPE_TEXT,
    ParameterType.INTEGER: pb.TEMPLATE_PARAMETER_TYPE_INTEGER,
    ParameterType.NUMBER: pb.TEMPLATE_PARAMETER_TYPE_NUMBER,
    ParameterType.BOOLEAN: pb.TEMPLATE_PARAMETER_TYPE_BOOLEAN,
}
_TYPES_FROM = {number: kind for kind, number in _TYPES.items()}


def template_from(metadata: Metadata, spec: pb.TemplateSpec) -> Template:
    """A template."""
    return Template(
        metadata=metadata,
        parameters=parameters_from(spec.parameters),
        body=tuple(item.SerializeToString(deterministic=True) for item in spec.objects),
        bindings=tuple(Binding(each.object, each.path, each.parameter) for each in spec.bindings),
        description=spec.description,
        owner=spec.owner,
        requires_approval=spec.requires_approval,
        requires_smoke=spec.requires_smoke,
    )


def template_to(template: Template) -> pb.TemplateSpec:
    """A template."""
    return pb.TemplateSpec(
        description=template.description,
        owner=template.owner,
        parameters=[_parameter_to(each) for each in template.parameters],
        objects=[pb.Object.FromString(raw) for raw in template.body],
        bindings=[
            pb.TemplateBinding(object=each.object, path=each.path, parameter=each.parameter)
            for each in template.bindings
        ],
        requires_approval=template.requires_approval,
        requires_smoke=template.requires_smoke,
    )


def parameters_from(parameters: Iterable[pb.TemplateParameter]) -> tuple[Parameter, ...]:
    """Its parameters; a type of a later release counts as TEXT."""
    return tuple(
        Parameter(
            each.name,
            each.description,
            _TYPES_FROM.get(each.type, ParameterType.TEXT),
            each.default if each.HasField("default") else None,
            tuple(each.allowed),
        )
        for each in parameters
    )


def _parameter_to(parameter: Parameter) -> pb.TemplateParameter:
    return pb.TemplateParameter(
        name=parameter.name,
        description=parameter.description,
        type=_TYPES[parameter.type],
        default=parameter.default,
        allowed=parameter.allowed,
    )
