"""Which tensor of a tuned model is which tensor of its base?

In: two folders; the tuned one may be an adapter. Out: a pair for each weight of the base, and notes
on what was read in another way than it is stored. Files of one model differ in form: the head may
be stored or tied to the embedding, names may lack the leading `model.`, buffers may lie beside the
weights. These are settled here, by rules that change no number; everything else is refused.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, final

from sft_atlas import files
from sft_atlas.errors import StoreError
from sft_atlas.weights.adapter import DoraFactors, LoraFactors, is_adapter, read_adapter
from sft_atlas.weights.names import parse_weight_name
from sft_atlas.weights.stored import DTYPES, StoredTensor, find_tensors

AreEqual = Callable[[StoredTensor, StoredTensor], bool]
"""Tells whether two stored tensors hold the same values."""

Change = StoredTensor | LoraFactors | DoraFactors
"""A weight as it is afterwards, or how to compute it from what it was."""

_BUFFERS: Final = (".inv_freq", ".masked_bias")
_MASKS: Final = (".attn.bias", ".attention.bias")
"""Causal masks of GPT-2 and GPT-NeoX, which have four dimensions; a bias has one."""

_PREFIXES: Final = ("model.", "transformer.", "gpt_neox.", "backbone.", "model.decoder.")
"""Names of the decoder inside a causal language model: files of the decoder alone lack them."""

_NUM_NAMED: Final = 3
_ONE_ARCHITECTURE: Final = (
    "expected two models of one architecture. Compare a model with the base that it was trained "
    "from."
)


@final
class WeightPair(NamedTuple):
    """One weight before, and where it is after."""

    name: str
    before: StoredTensor
    after: Change | None
    """None: an adapter leaves this weight as it is."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Pairing:
    """All weights of a base model, in the order of its files."""

    pairs: tuple[WeightPair, ...]
    notes: tuple[str, ...]
    """What a reader of the numbers should know, as sentences."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """The weights of one folder and what its configuration says of the head."""

    folder: Path
    tensors: dict[str, StoredTensor]
    is_tied: bool | None
    """None where no configuration says it."""

    @property
    def embedding(self) -> StoredTensor | None:
        found = [t for n, t in self.tensors.items() if parse_weight_name(n).kind == "embedding"]
        return found[0] if len(found) == 1 else None


def pair_folders(base_folder: Path, tuned_folder: Path, *, are_equal: AreEqual) -> Pairing:
    """Pair the weights of a base model's folder with those of a tuned model or an adapter.

    Raises:
        StoreError: if they are not two states of one model, an adapter changes what the base does
            not have, a type is quantised, or a file is damaged.
    """
    notes: list[str] = []
    base = _read_model(base_folder, notes)
    if is_adapter(tuned_folder):
        return _pair_adapter(base, tuned_folder, notes)
    tuned = _read_model(tuned_folder, notes)
    tuned = _aligned(tuned, base, notes)
    after = _settle_heads(base, tuned, are_equal, notes)
    _check_names(base, after, tuned.folder)
    pairs = [WeightPair(name, before, after[name]) for name, before in base.tensors.items()]
    for pair in pairs:
        assert isinstance(pair.after, StoredTensor)
        _check_shapes(pair.name, pair.before, pair.after)
    return Pairing(pairs=tuple(pairs), notes=tuple(notes))


def _read_model(folder: Path, notes: list[str]) -> _Model:
    if is_adapter(folder):
        raise StoreError(
            f"{folder}: is an adapter; expected a whole model as the base. Name the base model "
            f"first, the adapter second."
        )
    tensors = find_tensors(folder)
    buffers = [name for name, tensor in tensors.items() if _is_buffer(tensor)]
    if buffers:
        notes.append(
            f"{folder}: {len(buffers)} buffers that are no weights were left out, such as "
            f"{buffers[0]!r}."
        )
    tensors = {name: tensor for name, tensor in tensors.items() if name not in buffers}
    for tensor in tensors.values():
        _check_type(tensor)
    return _Model(folder=folder, tensors=tensors, is_tied=_says_tied(folder))


def _is_buffer(tensor: StoredTensor) -> bool:
    is_mask = tensor.name.endswith(_MASKS) and len(tensor.shape) == 4
    return is_mask or tensor.name.endswith(_BUFFERS)


def _says_tied(folder: Path) -> bool | None:
    try:
        config: Any = files.read_json(folder / "config.json")
        for part in (config, config.get("text_config") or {}):
            if "tie_word_embeddings" in part:
                return bool(part["tie_word_embeddings"])
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return None


def _aligned(tuned: _Model, base: _Model, notes: list[str]) -> _Model:
    """Return the tuned model under the base's names where one has a leading part more."""
    wanted = _without_heads(base.tensors)
    if wanted & tuned.tensors.keys():
        return tuned
    for prefix in _PREFIXES:
        for renamed in (
            {name.removeprefix(prefix): tensor for name, tensor in tuned.tensors.items()},
            {prefix + name: tensor for name, tensor in tuned.tensors.items()},
        ):
            heads = {n: t for n, t in tuned.tensors.items() if _is_head(n)}
            renamed = {n: t for n, t in renamed.items() if not _is_head(n)} | heads
            if _without_heads(renamed) == wanted:
                notes.append(_prefix_note(tuned.folder, prefix))
                return _Model(folder=tuned.folder, tensors=renamed, is_tied=tuned.is_tied)
    return tuned


def _settle_heads(
    base: _Model, tuned: _Model, are_equal: AreEqual, notes: list[str]
) -> dict[str, StoredTensor]:
    """Return the tuned tensors by name; a head that is the embedding again is taken out of both."""
    after = dict(tuned.tensors)
    for head in sorted(filter(_is_head, base.tensors.keys() | tuned.tensors.keys())):
        copies = [
            m for m in (base, tuned) if head in m.tensors and _is_copy(m, head, are_equal, notes)
        ]
        plain = [m for m in (base, tuned) if head not in m.tensors and _is_headless_by_tie(m)]
        if len(copies) + len(plain) == 2:
            base.tensors.pop(head, None)
            after.pop(head, None)
        elif plain and plain[0] is base and base.embedding is not None:
            notes.append(_compared_with_embedding(head, base, tuned))
            base.tensors[head] = base.embedding
        elif plain and plain[0] is tuned and tuned.embedding is not None:
            notes.append(_compared_with_embedding(head, tuned, base))
            after[head] = tuned.embedding
    return after


def _compared_with_embedding(head: str, tied: _Model, other: _Model) -> str:
    return (
        f"{tied.folder}: has no {head!r} because it is tied to the embedding; {other.folder} has "
        f"one of its own, which is compared with that embedding."
    )


def _is_copy(model: _Model, head: str, are_equal: AreEqual, notes: list[str]) -> bool:
    """Tell whether a stored head is the embedding once more."""
    if model.is_tied is False or model.embedding is None:
        return False
    if not are_equal(model.tensors[head], model.embedding):
        if model.is_tied is None:
            return False
        raise StoreError(
            f"{model.folder}: config.json ties {head!r} to the embedding, but the file holds other "
            f"values for it; expected the same values, or tie_word_embeddings false. Say in "
            f"config.json which of both it is."
        )
    notes.append(
        f"{model.folder}: stores {head!r} with the values of the embedding; it was read as tied."
    )
    return True


def _is_headless_by_tie(model: _Model) -> bool:
    return model.is_tied is not False and model.embedding is not None


def _check_names(base: _Model, after: Mapping[str, StoredTensor], tuned: Path) -> None:
    lost, extra = base.tensors.keys() - after.keys(), after.keys() - base.tensors.keys()
    if lost or extra:
        parts = []
        if lost:
            parts.append(f"{_name_list(lost, 'is', 'are')} in {base.folder} alone")
        if extra:
            parts.append(f"{_name_list(extra, 'is', 'are')} in {tuned} alone")
        raise StoreError(f"{tuned}: {', '.join(parts)}; {_ONE_ARCHITECTURE}")


def _check_shapes(name: str, before: StoredTensor, after: StoredTensor) -> None:
    if before.shape != after.shape:
        hint = ""
        if parse_weight_name(name).kind in ("embedding", "head"):
            hint = " Where tokens were added, compare with the base after the same resizing."
        raise StoreError(
            f"{after.path}: {name!r} has shape {after.shape}, but {before.shape} in "
            f"{before.path}; {_ONE_ARCHITECTURE}{hint}"
        )


def _check_type(tensor: StoredTensor) -> None:
    if tensor.dtype not in DTYPES:
        raise StoreError(
            f"{tensor.path}: {tensor.name!r} is stored as {tensor.dtype}; expected "
            f"{', '.join(DTYPES)}. Dequantise the model and save it as bfloat16."
        )
    if not tensor.num_weights:
        raise StoreError(
            f"{tensor.path}: {tensor.name!r} has shape {tensor.shape}, which holds no weight; "
            f"expected all weights. Gather the parts of a partitioned checkpoint and save it again."
        )


def _pair_adapter(base: _Model, folder: Path, notes: list[str]) -> Pairing:
    adapter = read_adapter(folder)
    stored = find_tensors(folder)
    after: dict[str, Change] = dict(adapter.factors)
    after |= {name: stored[source] for name, source in adapter.replaced.items()}
    if both := sorted(adapter.factors.keys() & adapter.replaced.keys()):
        raise StoreError(
            f"{folder}: holds {both[0]!r} both as a whole and as factors; expected one of both. "
            f"Merge the adapter into its base model with peft and use the merged model."
        )
    befores = dict(base.tensors)
    if adapter.ties_head:
        for head in filter(_is_head, base.tensors):
            del befores[head]
    after = _under_names_of(befores, after, folder, notes)
    for name in sorted(after.keys() - befores.keys()):
        if _is_head(name) and _is_headless_by_tie(base) and base.embedding is not None:
            befores[name] = base.embedding
            notes.append(
                f"{base.folder}: has no {name!r} because it is tied to the embedding; the "
                f"adapter's is compared with that embedding."
            )
    if foreign := after.keys() - befores.keys():
        raise StoreError(
            f"{folder}: it changes {_name_list(foreign, 'which is', 'which are')} not in "
            f"{base.folder}; expected an adapter of this base model. Name the base that it was "
            f"trained on."
        )
    for name, change in after.items():
        _check_fits(name, befores[name], change, folder)
    pairs = tuple(WeightPair(name, before, after.get(name)) for name, before in befores.items())
    return Pairing(pairs=pairs, notes=tuple(notes))


def _under_names_of(
    befores: Mapping[str, StoredTensor],
    after: dict[str, Change],
    folder: Path,
    notes: list[str],
) -> dict[str, Change]:
    """Return an adapter's changes by the base's names where those lack a leading part."""
    for prefix in _PREFIXES:
        renamed = {name.removeprefix(prefix): change for name, change in after.items()}
        if not after.keys() & befores.keys() and renamed.keys() <= befores.keys():
            notes.append(_prefix_note(folder, prefix))
            return renamed
    return after


def _prefix_note(folder: Path, prefix: str) -> str:
    return f"{folder}: its names differ from the base's by a leading {prefix!r}, which was ignored."


def _check_fits(name: str, before: StoredTensor, change: Change, folder: Path) -> None:
    if isinstance(change, StoredTensor):
        _check_type(change)
        shape = change.shape
    else:
        factors = change.low_rank if isinstance(change, DoraFactors) else change
        shape = (factors.up.shape[0], factors.down.shape[1])
    if shape != before.shape:
        raise StoreError(
            f"{folder}: its change of {name!r} has shape {shape}, but the weight has "
            f"{before.shape} in {before.path}; expected an adapter of this base model. Name the "
            f"base that it was trained on."
        )


def _is_head(name: str) -> bool:
    return parse_weight_name(name).kind == "head"


def _without_heads(names: Iterable[str]) -> set[str]:
    return {name for name in names if not _is_head(name)}


def _name_list(names: Iterable[str], singular: str, plural: str) -> str:
    """Name tensors in a few words and add a verb: whole layers as a range, else the first few."""
    names = sorted(names)
    layers = [parse_weight_name(name).layer for name in names]
    known = sorted({layer for layer in layers if layer is not None})
    if known and None not in layers and len(names) > 1:
        first, last = known[0], known[-1]
        if known == list(range(first, last + 1)):
            text = f"layer {first}" if first == last else f"layers {first}..{last}"
            return f"{text} ({len(names)} tensors, such as {names[0]!r}) {plural}"
    shown = ", ".join(map(repr, names[:_NUM_NAMED]))
    if len(names) == 1:
        return f"{shown} {singular}"
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return f"{shown}{more} {plural}"
