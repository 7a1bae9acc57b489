"""What the reader of a prototxt did not understand: what does no harm, and what stops a layer.

A meaning that is not known never becomes the default meaning. What stays in `Layer.unread` keeps
the layer from running; everything else becomes a `FieldNote`, which reports keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from caffe_proto import LayerParameter, NetParameter, Unread, unread_fields
from int8calib.caffe.layers.registry import is_built_in
from int8calib.caffe.network.graph import FieldNote, Layer
from int8calib.caffe.network.inputs import INPUT_TYPES
from int8calib.errors import ModelError

HARMLESS = "it changes nothing here"
NEVER_RUNS = "the layer does not run here"
AS_TOLD = "left out as told (--ignore-field)"
NOT_NEEDED = "no quantized layer needs the layer"
NOT_RUN = "nothing runs here, weights alone are compared"
OUTSIDE = "it stands outside of the layers"
NOT_THERE = "given to --ignore-field, but the file has no such field that is not known"

_HARMLESS_NAMES = frozenset(
    (
        # training
        "lr_mult",
        "decay_mult",
        "blobs_lr",
        "weight_decay",
        "lr",
        "momentum",
        "propagate_down",
        "loss_weight",
        "loss_param",
        "share_mode",
        "moving_average_fraction",
        "update_global_stats",
        "frozen",
        "weight_fixed",
        "regularization",
        # how, not what, is computed
        "engine",
        "force_nd_im2col",
        "forward_type",
        "backward_type",
        "forward_math",
        "backward_math",
        "blobs_dtype",
        "debug",
        "debug_info",
        # what is shown or stored
        "save_file",
        "save_output_param",
        "label_map_file",
        "name_size_file",
        "output_directory",
        "display_name",
    )
)
_HARMLESS_BEGINNINGS = ("cudnn", "mkldnn", "mlu", "quant", "transform", "visual", "default_")
_HARMLESS_ENDS = ("filler", "_data_param", "_dtype")
_DEFAULTS = frozenset(
    (
        # Options of forks with the value they have where they are not given.
        ("batch_norm_param.icnet", "false"),
        ("bn_param.icnet", "false"),
        ("convolution_param.dis_mode", "false"),
        ("convolution_param.gen_mode", "false"),
        ("convolution_param.input_scale", "1"),
        ("convolution_param.output_scale", "1"),
        ("convolution_param.pad_type", "0"),
        ("convolution_param.saturate", "None"),
        ("dropout_param.sample_weights_test", "false"),
        ("eltwise_param.axis", "0"),
        ("eltwise_param.output_scale", "1"),
        ("eltwise_param.saturate", "None"),
        ("inner_product_param.dis_mode", "false"),
        ("inner_product_param.gen_mode", "false"),
        ("inner_product_param.output_scale", "1"),
        ("interp_param.full_zoom_factor", "1"),
        ("lrn_param.input_scale", "1"),
        ("lrn_param.output_scale", "1"),
        ("pooling_param.output_shift_instead_division", "0"),
        ("pooling_param.pad_type", "0"),
        ("pooling_param.saturate", "None"),
        ("prior_box_param.faceboxes", "false"),
        ("prior_box_param.tf", "false"),
        ("prior_box_param.yx_order", "false"),
        ("relu_param.saturate", "None"),
        ("reshape_param.pixelshuffler", "1"),
        ("softmax_param.input_scale", "1"),
        ("softmax_param.output_scale", "1"),
    )
)
_PART_OF_A_LAYER = frozenset(("bottom", "top", "type"))
_SPATIAL = frozenset(("kernel_size", "stride", "pad", "dilation"))
_SHOWN = 5


def is_harmless(unread: Unread) -> bool:
    """Whether leaving something out cannot change what a layer computes."""
    if unread.field == "phase":  # of a layer itself it is no rule in Caffe
        return True
    for name in unread.field.split("."):
        if name in _HARMLESS_NAMES or name == "data_param":
            return True
        if name.startswith(_HARMLESS_BEGINNINGS) or name.endswith(_HARMLESS_ENDS):
            return True
    return unread.kind == "field" and (unread.field, unread.value) in _DEFAULTS


def describe(unread: Sequence[Unread]) -> str:
    """What was not understood of one field, in words; `unread` are its occurrences."""
    first = unread[0]
    if first.kind == "field":
        value = f": {first.value}" if first.value and len(first.value) <= 40 else ""
        return f"{first.field}{value} is not known"
    if first.kind == "enum":
        value = first.value if len(first.value) <= 40 else f"{first.value[:40]}..."
        return f"{first.field}: {value or '{...}'} is not a known value"
    times = "twice" if len(unread) == 1 else f"{len(unread) + 1} times"
    message = f"{first.field} is given {times}"
    if first.field.rpartition(".")[2] in _SPATIAL and len(unread) > 1:
        message += f" ({len(unread) + 1}-d is not supported)"
    return message


def by_field(unread: Iterable[Unread]) -> list[tuple[Unread, ...]]:
    """The occurrences of each field together, in the order of the file."""
    groups: dict[tuple[str, str], list[Unread]] = {}
    for one in unread:
        value = one.value if one.kind == "enum" else ""
        groups.setdefault((one.field, value), []).append(one)
    return [tuple(group) for group in groups.values()]


def is_ignored(unread: Unread, ignored: Iterable[str]) -> bool:
    """Whether the user named the field, or a message around it, as one to ignore."""
    return any(unread.field == name or unread.field.startswith(f"{name}.") for name in ignored)


def stopping(params: LayerParameter, ignored: Sequence[str]) -> tuple[Unread, ...]:
    """What keeps a layer from running as it is written, in the order of the file.

    Nothing does where the type is not this package's own: what a data layer says is not needed,
    and a function from outside reads its options itself (`caffe_proto.unknown_fields`).
    """
    if params.type in INPUT_TYPES or not is_built_in(params.type):
        return ()
    return tuple(
        one
        for one in unread_fields(params)
        if not is_harmless(one) and not is_ignored(one, ignored)
    )


def layer_notes(params: LayerParameter, ignored: Sequence[str], *, runs: bool) -> list[FieldNote]:
    """What was left out of a layer that does not run, or that runs nevertheless."""
    of_others = runs and params.type not in INPUT_TYPES and not is_built_in(params.type)
    if of_others or not params.unread:
        return []
    stops = frozenset(stopping(params, ignored) if runs else ())
    left = [one for one in unread_fields(params) if one not in stops]
    notes = []
    for group in by_field(left):
        if is_ignored(group[0], ignored):
            reason = AS_TOLD
        else:
            reason = HARMLESS if is_harmless(group[0]) else NEVER_RUNS
        notes.append(_note(params.name, params.type, group, reason))
    return notes


def net_notes(
    net: NetParameter, ignored: Sequence[str]
) -> tuple[tuple[Unread, ...], list[FieldNote]]:
    """What stands outside of the layers: that which looks like a layer, and notes of the rest."""
    stops: list[Unread] = []
    left: list[Unread] = []
    for one, entry in zip(unread_fields(net), net.unread, strict=True):
        is_layer = not _PART_OF_A_LAYER.isdisjoint(child.name for child in entry.children)
        (stops if is_layer and not is_ignored(one, ignored) else left).append(one)
    notes = [
        _note("", "", group, AS_TOLD if is_ignored(group[0], ignored) else OUTSIDE)
        for group in by_field(left)
    ]
    every = [*unread_fields(net), *(one for layer in net.layer for one in unread_fields(layer))]
    notes += [
        FieldNote("", "", name, 0, f"{name} is not in the file", NOT_THERE)
        for name in ignored
        if not any(is_ignored(one, [name]) for one in every)
    ]
    return tuple(stops), notes


def unneeded_notes(layers: Iterable[Layer], reason: str = NOT_NEEDED) -> list[FieldNote]:
    """Notes of layers that cannot run as they are written, where nothing needs them to run."""
    return [
        _note(layer.name, layer.type, group, reason)
        for layer in layers
        for group in by_field(layer.unread)
    ]


def _note(layer: str, type_: str, group: Sequence[Unread], reason: str) -> FieldNote:
    return FieldNote(layer, type_, group[0].field, group[0].line, describe(group), reason)


def obstacle_reason(unread: Sequence[Unread]) -> str:
    """What to say of a layer that has something that was not understood, after its label."""
    groups = by_field(unread)
    more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    what = ", ".join(f"{describe(group)} (line {group[0].line})" for group in groups[:_SHOWN])
    return f"cannot run as written: {what}{more}"


def way_out(unread: Sequence[Unread]) -> str:
    """What a user can do about it."""
    fields = list(dict.fromkeys(one.field for one in unread))
    options = " ".join(f"--ignore-field {field}" for field in fields[:_SHOWN])
    return f"correct the prototxt, or go on without it: {options} (ignore_fields in Python)"


def outside_error(source: str, unread: Sequence[Unread]) -> ModelError:
    """The error for something that looks like a layer under a name that is not known."""
    one = unread[0]
    return ModelError(
        f"{source}:{one.line}: {one.field} is not known and looks like a layer; {way_out(unread)}"
    )


def summary(notes: Sequence[FieldNote]) -> str:
    """All notes in one line, empty for none; each field and reason once."""
    lines: dict[tuple[str, str], list[FieldNote]] = {}
    for note in notes:
        lines.setdefault((note.what, note.reason), []).append(note)
    parts = []
    for (what, reason), group in list(lines.items())[:_SHOWN]:
        place = f"line {group[0].line}" if group[0].line else ""
        times = f"{len(group)} times" if len(group) > 1 else ""
        where = ", ".join(part for part in (place, times) if part)
        parts.append(f"{what}{f' ({where})' if where else ''}: {reason}")
    if len(lines) > _SHOWN:
        parts.append(f"and {len(lines) - _SHOWN} more")
    return "; ".join(parts)
