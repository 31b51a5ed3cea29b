"""A Steering is what was learned; `attach` puts it beside a model; the Dial it returns is the strength.

    h' = h + sum_i w_i (A_i h + c_i)        every delta is computed from the untouched h, so order does not matter

or, of an Adapter, from the input x of the site's module: h' = h + w L R x.
This room sees modules and tensors, never transformers.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from trimtab import caches, sites
from trimtab.errors import SiteError, SteeringError, StrengthError, UnknownFamily, UsageError
from trimtab.interventions import Adapter, Diagonal, Intervention, LowRank
from trimtab.types import POSITIONS, Positions

Strength = float | int | Sequence[float] | Tensor


@dataclass(frozen=True, eq=False)
class Steering:
    """A frozen {site: interventions} with the card that says what it is."""

    interventions: Mapping[str, tuple[Intervention, ...]]
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trained_range(self) -> tuple[float, float]:
        """The strengths it was trained for; [0, 1] where the card is silent."""
        low, high = self.card.get("strength", {}).get("trained", (0.0, 1.0))
        return float(low), float(high)

    @property
    def positions(self) -> Positions:
        """The tokens that it steers: what its card says, or all. Raises UsageError where the card says another word."""
        return _positions(self.card.get("positions", "all"))

    def at(self, positions: Positions) -> Steering:
        """The same steering at other positions: its card says which."""
        return Steering(self.interventions, {**self.card, "positions": _positions(positions)})

    def numbers(self) -> int:
        """How many numbers it holds."""
        return sum(t.numel() for group in self.interventions.values() for i in group for t in i.tensors().values())

    def digest(self) -> str:
        """SHA-256 over its sites and tensors."""
        found = hashlib.sha256()
        for site, group in sorted(self.interventions.items()):
            for intervention in group:
                for key, tensor in intervention.tensors().items():
                    found.update(f"{site} {key} ".encode() + tensor.detach().float().cpu().numpy().tobytes())
        return found.hexdigest()

    def random(self, seed: int) -> Steering:
        """A random direction of the same norm: each tensor's norm kept, its direction drawn anew.

        The negative control: what does as well as the learned steering after this was not learned. Of LowRank and
        Adapter the factors are drawn and rescaled so that the Frobenius norm of `L R` is kept.
        """
        generator = torch.Generator().manual_seed(seed)

        def drawn(t: Tensor) -> Tensor:
            noise = torch.randn(t.shape, generator=generator)
            scaled: Tensor = noise * (t.float().norm() / noise.norm())
            return scaled

        def twin(i: Intervention) -> Intervention:
            if isinstance(i, Diagonal):
                return Diagonal(None if i.a is None else drawn(i.a), drawn(i.c))
            L, R = drawn(i.L), drawn(i.R)
            L = L * ((i.L @ i.R).norm() / (L @ R).norm())
            return Adapter(L, R) if isinstance(i, Adapter) else LowRank(L, R, i.m)

        twins = {site: tuple(map(twin, group)) for site, group in self.interventions.items()}
        return Steering(twins, {**self.card, "learner": f"random direction, same norm, seed {seed}"})


class _Product:
    """A Diagonal times the strength: `w a`, None for a plain shift, and `w c`, in the dtype of the activation."""

    __slots__ = ("wa", "wc", "whole")

    def __init__(self, wa: Tensor | None, wc: Tensor) -> None:
        self.wa, self.wc = wa, wc
        # One operation where two would do: while a small model decodes, operations are what steering costs. Not in 16
        # bits, in which 1 + w a is 1 for most of what is learned.
        self.whole = 1 + wa if wa is not None and wa.dtype in (torch.float32, torch.float64) else None

    def onto(self, steered: Tensor, h: Tensor) -> Tensor:
        """`steered + (w a) h + w c`."""
        if self.wa is None:
            return steered + self.wc
        if self.whole is not None and steered is h:
            return torch.addcmul(self.wc, h, self.whole)
        return torch.addcmul(steered + self.wc, h, self.wa)


@dataclass(eq=False)
class _Voice:
    """One steering's share of one site, and its products with the strength, kept until the dial turns."""

    dial: Dial
    site: str
    group: tuple[Intervention, ...]
    sees: bool = False
    """Whether it stands inside the vision part, whose tokens are not the rows' own."""
    kept: dict[Any, list[_Product]] = field(default_factory=dict)
    ready: tuple[torch.dtype, torch.device, list[_Product]] | None = None
    """Of `kept`, what one strength for all rows of Diagonals alone comes to: nothing is left to decide. Decoding small
    models, deciding took as long as steering (measured)."""
    fired: bool = False

    def add(self, h: Tensor, given: Any, out: Tensor) -> Tensor:
        """`out` plus this share's delta of the untouched `h`, or of what the module was `given`; rows of strength 0
        come back bit for bit."""
        # A flag, not a set shared by the sites: a compiled graph would be compiled again for what the set holds.
        self.fired = True
        compiling = torch.compiler.is_compiling()
        # Eager code may skip work at strength 0; a compiled graph must not be specialised on today's strength, so
        # `_zero` may not even be read there. `_off` may: a graph for it is compiled once.
        if self.dial._off or self.dial._nowhere or (not compiling and self.dial._zero):
            return out
        mask, ready, steered = self.dial._mask, self.ready, out
        if ready is not None and not compiling and ready[0] is h.dtype and ready[1] == h.device:
            if mask is not None:
                return self._onto_some(ready[2], h, out)
            for product in ready[2]:
                steered = product.onto(steered, h)
            return steered
        w = self.dial._broadcast(h, sees=self.sees)
        for intervention, product in zip(self.group, self._products(w, h, compiling), strict=True):
            if isinstance(intervention, Adapter):
                steered = steered + (w * intervention.delta(_input(given, self.site))).to(h.dtype)
            elif isinstance(intervention, LowRank):
                steered = steered + (w * intervention.delta(h).float()).to(h.dtype)
            else:
                steered = product.onto(steered, h)
        if compiling or (w.ndim and self.dial._some_zero):
            steered = torch.where(w == 0, out, steered)
        return steered if mask is None else _where(mask, steered, out, self.site)

    def _onto_some(self, products: Sequence[_Product], h: Tensor, out: Tensor) -> Tensor:
        """The same as steering all tokens and choosing, where some are steered: most of a prompt may be an image."""
        at = self.dial._places(h, self.site)
        flat = out.reshape(-1, out.shape[-1])
        some = flat[at] if out is h else h.reshape(flat.shape)[at]
        steered = some if out is h else flat[at]
        for product in products:
            steered = product.onto(steered, some)
        return flat.index_copy(0, at, steered).view(out.shape)

    def _products(self, w: Tensor, h: Tensor, compiling: bool) -> list[_Product]:
        """Of each Diagonal in the dtype of h, rounded once: one strength gives one result on any path."""
        # Not where there is one strength a token (while decoding, each step has another w of the same shape), nor where
        # rows are flattened into tokens (the products are as large as h).
        keep = not compiling and (self.dial._w.ndim == 0 or (self.dial._w.ndim == 1 and h.ndim > 2))
        key = (h.dtype, h.device, w.shape)
        if keep and key in self.kept:
            return self.kept[key]
        # Nor while learning: what is learned changes from step to step.
        keep = keep and not any(t.requires_grad for i in self.group for t in i.tensors().values())
        if not keep:
            return self._made(w, h)
        # What is kept of a pass in inference mode may be wanted in one with gradients.
        with torch.inference_mode(False):
            made = self.kept[key] = self._made(w, h)
        if w.ndim == 0 and all(isinstance(i, Diagonal) for i in self.group):
            self.ready = (h.dtype, h.device, made)
        return made

    def _made(self, w: Tensor, h: Tensor) -> list[_Product]:
        made = []
        for i in self.group:
            if i.width != h.shape[-1]:
                raise SiteError(f"site '{self.site}' is {h.shape[-1]} wide, the steering was made for {i.width}")
            a = i.a if isinstance(i, Diagonal) else None
            c = i.c if isinstance(i, Diagonal) else h.new_zeros(())
            wa = None if a is None else (w * a.to(h.device)).to(h.dtype)
            made.append(_Product(wa, (w * c.to(h.device)).to(h.dtype)))
        return made

    def forget(self) -> None:
        """What was kept is of another strength, or of other rows, than the next pass has."""
        self.kept.clear()
        self.ready = None


class _SiteHook:
    """The one hook on a module: sums the deltas of all dials from the untouched activation."""

    def __init__(self, site: sites.Site) -> None:
        self.site = site
        self.voices: list[_Voice] = []
        if site.side == "output":
            self.handle = site.module.register_forward_hook(self._on_output)
        else:
            self.handle = site.module.register_forward_pre_hook(self._on_input, with_kwargs=True)

    def _on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            steered = self._steer(output[0], args)
            return None if steered is output[0] else (steered, *output[1:])
        steered = self._steer(output, args)
        return None if steered is output else steered

    def _on_input(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            steered = self._steer(args[0])
            return None if steered is args[0] else ((steered, *args[1:]), kwargs)
        first = next(iter(kwargs), None)
        steered = self._steer(kwargs.get(first))
        return None if steered is kwargs[first] else (args, {**kwargs, first: steered})

    def _steer(self, h: Any, given: Any = ()) -> Any:
        if not isinstance(h, Tensor) or not h.is_floating_point():
            what = f"{h.dtype} tensor" if isinstance(h, Tensor) else type(h).__name__
            raise SiteError(f"site '{self.site.name}' holds a {what}; only an activation tensor can be steered")
        out = h
        for voice in self.voices:
            out = voice.add(h, given, out)
        return out

    def remove(self, voice: _Voice) -> None:
        """Take one share away; the hook goes with the last."""
        self.voices.remove(voice)
        if not self.voices:
            self.handle.remove()
            _hooks[self.site.module].pop(self.site.side, None)


_Moment = tuple[tuple[int, int] | None, int, Tensor | None, bool]
"""What a dial knows of the pass that runs: rows and tokens, those before, where it steers, and whether nowhere."""
_hooks: weakref.WeakKeyDictionary[nn.Module, dict[str, _SiteHook]] = weakref.WeakKeyDictionary()


class Dial:
    """The strength of an attached steering; a context manager that leaves no hook behind.

    `strength` is one number, one a row (rows,), or one a token (rows, tokens) counted from the first column of the
    input, left padding included; tokens decoded beyond the last column keep the last column's strength. It is kept in
    a tensor on the model's device that is changed in place, so that a compiled model is not compiled again when it
    turns, and that is not moved while it runs; a model over several devices has a copy on each further one.
    """

    def __init__(self, root: nn.Module, steering: Steering, strength: Strength, *, beyond_range: bool) -> None:
        self.steering = steering
        self.positions = steering.positions
        self._beyond_range = beyond_range
        self._w = torch.zeros((), device=_home(root))
        self._copies: dict[torch.device, Tensor] = {}
        self._zero = True
        self._some_zero = True
        self._off = False
        self._select: Tensor | None = None
        self._rows_tokens: tuple[int, int] | None = None
        self._past = 0
        self._mask: Tensor | None = None
        """(rows, tokens) of the pass that runs, where it is limited to some: True where it steers."""
        self._chosen: Tensor | None = None
        """Where the mask is True, once that was asked for."""
        self._nowhere = False
        """Whether it steers no token of the pass that runs."""
        self._attached: list[tuple[_SiteHook, _Voice]] = []
        self._voices: list[_Voice] = []
        self.strength = strength
        _refuse_compiled(root)
        resolved = sites.find(root, list(steering.interventions)) if steering.interventions else []
        for site in resolved:
            for intervention in steering.interventions[site.name]:
                if site.width is not None and intervention.width != site.width:
                    raise SiteError(
                        f"site '{site.name}' is {site.width} wide, the steering was made for {intervention.width}; "
                        "it belongs to another model"
                    )
                if isinstance(intervention, Adapter):
                    _require_input(site, intervention)
        try:
            entry = sites.backbone(root)
        except UnknownFamily:
            entry = root
        outside = {id(m) for m in sites.vision_modules(root)} if hasattr(entry, sites.IMAGES) else set()
        self._refuse_positions(hasattr(entry, sites.IMAGES), [s for s in resolved if id(s.module) in outside])
        self._entry = entry.register_forward_pre_hook(self._on_forward, with_kwargs=True)
        for site in resolved:
            table = _hooks.setdefault(site.module, {})
            hook = table.get(site.side)
            if hook is None:
                hook = table[site.side] = _SiteHook(site)
            voice = _Voice(self, site.name, steering.interventions[site.name], id(site.module) in outside)
            hook.voices.append(voice)
            self._voices.append(voice)
            self._attached.append((hook, voice))
            # Now, not when it is first needed: a compiled graph would be compiled again for a copy that appeared in it.
            for p in site.module.parameters():
                self._w_on(p.device)

    def _refuse_positions(self, images: bool, vision: Sequence[sites.Site]) -> None:
        if self.positions == "all":
            return
        if vision:
            raise UsageError(
                f"site '{vision[0].name}' is in the vision part, where a steering acts on whole images; "
                f"positions '{self.positions}' are for sites of the language backbone"
            )
        if self.positions in ("image", "behind") and not images:
            raise UsageError(
                f"this model is shown no images, so there are no {self.positions} positions to steer; use 'all'"
            )

    @property
    def fired(self) -> set[str]:
        """The sites that were computed while it was attached."""
        return {voice.site for voice in self._voices if voice.fired}

    # -- the strength

    @property
    def strength(self) -> Tensor:
        """The current strength, a float32 tensor of shape (), (rows,) or (rows, tokens)."""
        return self._w

    @strength.setter
    def strength(self, value: Strength) -> None:
        try:
            w = torch.as_tensor(value, dtype=torch.float32).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise StrengthError(f"strength must be a number or a list of numbers, got {value!r}") from error
        low, high = self.steering.trained_range
        if w.ndim > 2 or w.numel() == 0:
            raise StrengthError(f"strength has shape {tuple(w.shape)}; expected a number, (rows,) or (rows, tokens)")
        if not bool(torch.isfinite(w).all()):
            raise StrengthError(f"strength must be finite, got {value}")
        outside = (w < min(low, 0.0)) | (w > high + 1e-6)
        if bool(outside.any()) and not self._beyond_range:
            worst = float(w[outside].flatten()[0])
            raise StrengthError(
                f"strength {worst:g} is outside the trained range [{low:g}, {high:g}]; what it does there is unknown. "
                "Ask for it with beyond_range=True (--beyond-range) if you mean it"
            )
        kept = (self._w, *self._copies.values())
        if w.shape == self._w.shape and not any(t.is_inference() for t in kept):
            for tensor in kept:
                tensor.copy_(w)
        else:
            self._w = w.to(self._w.device, copy=True)
            self._copies = {device: w.to(device, copy=True) for device in self._copies}
        self._zero = not bool(w.any())
        self._some_zero = bool((w == 0).any())
        self._forget()

    @contextmanager
    def rows(self, index: Sequence[int] | Tensor) -> Iterator[None]:
        """Within it, row i of the batch is steered with the strength of row `index[i]`."""
        before = self._select
        chosen = torch.as_tensor(index, dtype=torch.long).cpu()
        if self._w.ndim and not self._off and int(chosen.max()) >= self._w.shape[0]:
            raise StrengthError(
                f"{self._w.shape[0]} strengths for {int(chosen.max()) + 1} rows or more; give one number, or one a row"
            )
        self._select = None if self._w.ndim == 0 else chosen.to(self._w.device)
        self._forget()
        try:
            yield
        finally:
            self._select = before
            self._forget()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the model is untouched."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    @contextmanager
    def alone(self, row: int) -> Iterator[None]:
        """Within it the strength is the one number of a row of the coming pass, whatever a pass holds.

        For what is computed for that row apart from its tokens: its images.
        """
        before = self._select, self._rows_tokens
        if self._w.ndim:
            self._select = torch.tensor(self._number_of(row), device=self._w.device)
        self._rows_tokens = None
        self._forget()
        try:
            yield
        finally:
            self._select, self._rows_tokens = before
            self._forget()

    def of_row(self, row: int) -> float:
        """The strength of a row of the coming pass."""
        return float(self._w if self._w.ndim == 0 else self._w[self._number_of(row)])

    def _number_of(self, row: int) -> int:
        if self._w.ndim == 2:
            raise StrengthError("one strength a token cannot steer the vision part, where a row's tokens are not known")
        chosen = row if self._select is None else int(self._select[row])
        if chosen >= self._w.shape[0]:
            raise StrengthError(f"{self._w.shape[0]} strengths for {chosen + 1} rows or more; give one a row")
        return chosen

    @property
    def acts(self) -> bool:
        """Whether it would change anything now."""
        return not self._off and not self._zero

    @property
    def is_off(self) -> bool:
        """Whether it is within `off()`, or detached."""
        return self._off

    def _forget(self) -> None:
        for voice in self._voices:
            voice.forget()

    # -- the forward pass

    def _on_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids")
        if ids is None:
            ids = kwargs.get("inputs_embeds")
        if ids is None and args and isinstance(args[0], Tensor):
            ids = args[0]
        self._mask, self._chosen, self._nowhere = None, None, False
        if ids is None or ids.ndim < 2 or self._off:
            self._rows_tokens, self._past = None, 0
            return
        rows, tokens = ids.shape[:2]
        if self.positions != "all":
            self._look_where(module, (rows, tokens))
        if self._w.ndim == 0:
            self._rows_tokens, self._past = None, 0
            return
        past = caches.held(kwargs)
        w = self._rows_of_w(self._w.device)
        if w.shape[0] != rows:
            raise StrengthError(f"{w.shape[0]} strengths for {rows} rows; give one number, or one a row")
        if w.ndim == 2 and past == 0:
            decoding = caches.given(kwargs) is not None or kwargs.get("use_cache") is True
            if w.shape[1] < tokens or (w.shape[1] > tokens and not decoding):
                raise StrengthError(f"{w.shape[1]} strengths a row for {tokens} tokens; give one a token")
        self._rows_tokens, self._past = (rows, tokens), past

    def _places(self, h: Tensor, site: str) -> Tensor:
        """The numbers of the tokens that it steers in the pass that runs, all rows' in one."""
        assert self._mask is not None
        _require_one_each(self._mask, h, site)
        if self._chosen is None or self._chosen.device != h.device:
            self._chosen = self._mask.to(h.device).flatten().nonzero().squeeze(1)
        return self._chosen

    @property
    def _moment(self) -> _Moment:
        return self._rows_tokens, self._past, self._mask, self._nowhere

    @_moment.setter
    def _moment(self, value: _Moment) -> None:
        self._chosen = None
        self._rows_tokens, self._past, self._mask, self._nowhere = value

    def _look_where(self, module: nn.Module, shape: tuple[int, int]) -> None:
        """Which tokens of the pass that begins it steers."""
        at = getattr(module, sites.BEHIND if self.positions == "behind" else sites.IMAGES, None)
        if at is None or at.shape != shape:
            self._nowhere = self.positions != "text"
        elif self.positions == "text":
            self._mask = ~at
        # Behind a stem, or while decoding, all are: there is nothing to choose then.
        elif self.positions == "image" or torch.compiler.is_compiling() or not bool(at.all()):
            self._mask = at

    def _w_on(self, device: torch.device) -> Tensor:
        if device == self._w.device:
            return self._w
        if device not in self._copies:
            self._copies[device] = self._w.to(device)
        return self._copies[device]

    def _rows_of_w(self, device: torch.device) -> Tensor:
        w = self._w_on(device)
        return w if self._select is None else w[self._select.to(device)]

    def _broadcast(self, h: Tensor, *, sees: bool = False) -> Tensor:
        """The strength, shaped to broadcast over the leading axes of h; one number where h is an image's."""
        if self._w.ndim == 0:
            return self._w_on(h.device)
        w = self._rows_of_w(h.device)
        if sees:
            if w.ndim:
                raise StrengthError("rows of several strengths cannot be steered in the vision part in one pass")
            return w
        if self._rows_tokens is not None:
            rows, tokens = self._rows_tokens
            if w.ndim == 2:
                columns = torch.arange(self._past, self._past + tokens, device=w.device).clamp_(max=w.shape[1] - 1)
                w = w[:, columns]
            if h.ndim == 2 and h.shape[0] == rows * tokens:  # OPT flattens (rows, tokens) inside a block
                w = (w if w.ndim == 2 else w[:, None].expand(rows, tokens)).reshape(-1)
        if h.shape[: w.ndim] != w.shape:
            raise StrengthError(f"strength of shape {tuple(w.shape)} does not fit an activation {tuple(h.shape)}")
        return w.reshape(w.shape + (1,) * (h.ndim - w.ndim))

    # -- leaving

    def detach(self) -> None:
        """Take every hook of this dial off the model; doing it twice is harmless."""
        for hook, voice in self._attached:
            hook.remove(voice)
        self._attached.clear()
        self._entry.remove()
        # A graph compiled while it was attached has the hooks in it, and goes on calling them.
        self._off = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
        if kind is None:
            self._require_fired()

    def _require_fired(self) -> None:
        fired, attached = self.fired, {voice.site for voice in self._voices}
        silent = sorted(attached - fired)
        if not fired:
            where = "it has no interventions" if not attached else f"none of its {len(attached)} sites was computed"
            raise SteeringError(
                f"the steering did nothing: {where} while it was attached. "
                "Was another model run, or a copy of this one?"
            )
        if silent:
            raise SteeringError(
                f"the steering fired at {len(fired)} of {len(attached)} sites; silent: {', '.join(silent[:6])}"
            )


def attach(root: nn.Module, steering: Steering, strength: Strength = 1.0, *, beyond_range: bool = False) -> Dial:
    """Put a steering beside a model and return its dial; use it as a context manager or call `detach()`.

    `h' = h + w (A h + c)` at every site. Several dials may be attached at once: their deltas add, each computed from
    the untouched activation. One made for some positions (`Steering.at`) acts at those alone. Raises SiteError (unknown
    site, other width), StrengthError (NaN, wrong number, outside the trained range unless `beyond_range`),
    SteeringError (a compiled model, which would ignore the hooks), UsageError (image positions of a model that is shown
    none, or some positions of a site in the vision part).
    """
    return Dial(root, steering, strength, beyond_range=beyond_range)


def acting(modules: Iterable[nn.Module]) -> list[Dial]:
    """The dials that would change what these modules compute now."""
    found: dict[int, Dial] = {}
    for module in modules if _hooks else ():
        for hook in _hooks.get(module, {}).values():
            found.update({id(voice.dial): voice.dial for voice in hook.voices if voice.dial.acts})
    return list(found.values())


class _Again:
    """Puts dials back to moments of theirs, and after it to where they were; as often as it is entered."""

    def __init__(self, then: Sequence[tuple[Dial, _Moment]]) -> None:
        self._then = then
        self._before: list[tuple[Dial, _Moment]] = []

    def __enter__(self) -> None:
        self._before = [(dial, dial._moment) for dial, _ in self._then]
        for dial, moment in self._then:
            dial._moment = moment

    def __exit__(self, *_: object) -> None:
        for dial, moment in self._before:
            dial._moment = moment


def pass_again(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """A context within which the dials on these modules act as in the pass that runs now, whatever ran since.

    Activation checkpointing runs a block once more in the backward pass, when others have passed it; which tokens a
    dial steers is known when a pass begins.
    """
    return _Again([(dial, dial._moment) for dial in acting(modules)])


def _where(mask: Tensor, steered: Tensor, out: Tensor, site: str) -> Tensor:
    """`steered` at the tokens of a (rows, tokens) mask, `out` at the others; both may come as rows * tokens in one."""
    _require_one_each(mask, out, site)
    return torch.where(mask.to(out.device).reshape(*out.shape[:-1], 1), steered, out)


def _require_one_each(mask: Tensor, out: Tensor, site: str) -> None:
    if mask.numel() != out.shape[:-1].numel():
        raise SiteError(f"site '{site}' holds {tuple(out.shape)}, which is not one activation for each token")


def _positions(value: Any) -> Positions:
    if value not in POSITIONS:
        raise UsageError(f"positions {value!r} is not one of {', '.join(POSITIONS)}")
    chosen: Positions = value
    return chosen


def _require_input(site: sites.Site, adapter: Adapter) -> None:
    if site.side != "output":
        raise SiteError(f"site '{site.name}' is an input; an adapter changes a module's output from its input")
    inner = sites.input_width(site.module)
    if inner is not None and inner != adapter.inner:
        raise SiteError(
            f"the module of '{site.name}' takes {inner} numbers, the adapter was made for {adapter.inner}; it belongs "
            "to another model"
        )


def _input(given: Any, site: str) -> Tensor:
    if not given or not isinstance(given[0], Tensor) or not given[0].is_floating_point():
        raise SiteError(f"the module of '{site}' was not given an activation first, so an adapter has nothing to read")
    x: Tensor = given[0]
    return x


def _home(root: nn.Module) -> torch.device:
    """Where the strength lives: with the first weights; on the CPU where there are none, or none loaded yet."""
    first = next(root.parameters(), None)
    return torch.device("cpu") if first is None or first.is_meta else first.device


def _refuse_compiled(root: nn.Module) -> None:
    for module in root.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise SteeringError(
                "this model was compiled before the steering was attached, and a compiled graph ignores new hooks; "
                "attach first, then torch.compile; turning the dial afterwards compiles nothing again"
            )
