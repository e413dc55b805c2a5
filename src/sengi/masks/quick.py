"""Plain conversations without running the template: the shape's text is filled in, its tokens are counted off.

Where `masks.flow` proves that the template only copies texts, all conversations of one shape (the roles, in order)
are the same text around their messages. That text, and how each message is stripped, is learned once per shape
from renderings with sentinels. In the tokens, every control token of the template stands at its place in a known
order, so headers, answers and closing tokens are found by counting control tokens, for a whole batch at once.

What is not plain, holds a guard or a control token's text, or comes out with other tokens than foreseen, is left to
the full way (`masks.layout`, `masks.encode`); `Masker` compares both ways on a sample of rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sengi.conversation import Conversation
from sengi.errors import MaskError
from sengi.masks.flow import content_guards
from sengi.masks.layout import LayoutMaker
from sengi.masks.skeleton import Control, Mark, Piece, Skeleton
from sengi.masks.slots import sentinels, slot_paths, with_slots
from sengi.masks.template import MAX_RENDERED_CHARS, ChatTemplate

_MAX_SHAPES = 4096
_PAD = "\n \u3000\n"  # tells a strip of all white space from one of new lines and from none
_LEFT: dict[str, Callable[[str], str]] = {
    _PAD: lambda text: text,
    _PAD[1:]: lambda text: text.lstrip("\n"),
    "": str.lstrip,
}
_RIGHT: dict[str, Callable[[str], str]] = {
    _PAD: lambda text: text,
    _PAD[:-1]: lambda text: text.rstrip("\n"),
    "": str.rstrip,
}


@dataclass(frozen=True, slots=True)
class Turn:
    """A supervised answer: from behind the ids of ``header``, which begin at control token ``anchor``, to ``closing``.

    Both are numbers of control tokens of the template, in the order of the text.
    """

    anchor: int
    closing: int
    header: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """All conversations with the same roles.

    Attributes:
        parts: the template's own text, with an empty place for a message between each two.
        messages: number of the message in each place.
        strips: what the template strips of each, by place; None: nothing of any.
        control: ids of the template's control tokens, in order.
        turns: supervised answers.
        open_border: a control token could begin in the template's text and end in a message.
    """

    parts: list[str]
    messages: tuple[int, ...]
    strips: tuple[Callable[[str], str], ...] | None
    control: NDArray[np.int32]
    turns: tuple[Turn, ...]
    open_border: bool


class Quick:
    """Texts and tokens of plain conversations under one template.

    Args:
        template: the chat template.
        maker: keeps the skeletons of shapes under it.
        control: the tokenizer's control tokens.
        names: id of each control token by its text.
        encode: ids of a text encoded alone.
    """

    def __init__(
        self,
        template: ChatTemplate,
        maker: LayoutMaker,
        control: Control,
        names: dict[str, int],
        encode: Callable[[str], list[int]],
    ) -> None:
        self._template, self._maker, self._control = template, maker, control
        self._names, self._encode = names, encode
        guards = None if template.prompt_reads_messages else content_guards(template.syntax)
        self.proven = guards is not None
        self._guards = guards or ()
        self._starts = "".join(sorted({text[0] for text in (*self._guards, *names)}))
        self._shapes: dict[tuple[str, ...], Shape | None] = {}
        self._is_control = np.zeros(max(names.values(), default=0) + 2, dtype=np.bool_)
        self._is_control[list(names.values())] = True

    def text(self, row: Conversation) -> tuple[Shape, str] | None:
        """Shape and rendered text of a conversation; None where the full way has to be gone."""
        if not self.proven or row.unmask or row.tools is not None:
            return None
        contents, roles = [], []
        for message in row.messages:
            if len(message) != 2 or "content" not in message or "role" not in message:
                return None
            content, role = message["content"], message["role"]
            if type(content) is not str or type(role) is not str or not content or content.isspace():
                return None
            contents.append(content)
            roles.append(role)
        key = tuple(roles)
        shape = self._shapes[key] if key in self._shapes else self._learn(key)
        if shape is None:
            return None
        pieces = shape.parts.copy()
        if shape.strips is None:
            pieces[1::2] = [contents[k] for k in shape.messages]
        else:
            pieces[1::2] = [strip(contents[k]) for k, strip in zip(shape.messages, shape.strips, strict=True)]
        text = "".join(pieces)
        if self._suspect(shape, contents, text) or len(text) > MAX_RENDERED_CHARS:
            return None
        return shape, text

    def _suspect(self, shape: Shape, contents: Sequence[str], text: str) -> bool:
        """Whether a message holds a guard, or there are other control tokens in the text than the template's."""
        together = "".join(contents)
        if not shape.open_border and not any([start in together for start in self._starts]):
            return False
        if any(guard in content for guard in self._guards for content in contents):
            return True
        return len(self._control.pattern.findall(text)) != len(shape.control)

    def _learn(self, roles: tuple[str, ...]) -> Shape | None:
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        messages = [{"role": role, "content": "text"} for role in roles]
        try:
            shape = self._shape(self._maker.skeleton(messages, None), messages)
        except MaskError:
            shape = None  # the full way says what is wrong with it
        self._shapes[roles] = shape
        return shape

    def _shape(self, skeleton: Skeleton, messages: list[dict[str, Any]]) -> Shape | None:
        strips = self._strips(skeleton, messages)
        matches = [list(self._control.pattern.finditer(part)) for part in skeleton.parts]
        before = [0, *itertools.accumulate(len(part) for part in matches)]
        turns = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            for piece in skeleton.pieces.get(i, [None]):
                turn = None if piece is None else self._turn(skeleton, piece, matches, before)
                if turn is None:
                    return None
                turns.append(turn)
        ordered = all(a.closing <= b.anchor for a, b in itertools.pairwise(turns))
        if strips is None or not turns or not ordered:
            return None
        heads = {name[:size] for name in self._names for size in range(1, len(name))}
        plain = all(strip is _LEFT[_PAD] for strip in strips)
        return Shape(
            parts=[text for part in skeleton.parts for text in (part, "")][:-1],
            messages=tuple(slot.message for slot in skeleton.slots),
            strips=None if plain else strips,
            control=np.array([self._names[match[0]] for part in matches for match in part], dtype=np.int32),
            turns=tuple(turns),
            open_border=any(part.endswith(head) for part in skeleton.parts[:-1] for head in heads),
        )

    def _strips(self, skeleton: Skeleton, messages: list[dict[str, Any]]) -> tuple[Callable[[str], str], ...] | None:
        """What the template strips of each message, from a rendering of messages with white space at their ends."""
        slots = slot_paths(messages)
        marked = sentinels(messages, slots)
        padded = with_slots(marked, {slot.path: f"{_PAD}{marked[slot.message]['content']}{_PAD}" for slot in slots})
        rendered = self._template.render(padded, None, False)
        at, strips = len(skeleton.parts[0]), []
        if not rendered.startswith(skeleton.parts[0]):
            return None
        for slot, part in zip(skeleton.slots, skeleton.parts[1:], strict=True):
            mark = marked[slot.message]["content"]
            # a part may begin with white space itself: all that fit are tried, longest first, and one must lead on
            fitting = [
                (left, right, len(left) + len(mark) + len(right))
                for left in _LEFT
                for right in _RIGHT
                if rendered.startswith(f"{left}{mark}{right}{part}", at)
            ]
            if len(fitting) != 1:
                return None
            left, right, size = fitting[0]
            strips.append(_both(_LEFT[left], _RIGHT[right]))
            at += size + len(part)
        return tuple(strips) if at == len(rendered) else None

    def _turn(self, skeleton: Skeleton, piece: Piece, matches: list[list[Any]], before: list[int]) -> Turn | None:
        def number(mark: Mark) -> int | None:
            starts = [match.start() for match in matches[mark.part]]
            return before[mark.part] + starts.index(mark.offset) if mark.offset in starts else None

        if not piece.border or piece.anchor is None or piece.closing is None or piece.anchor.part != piece.start.part:
            return None
        anchor, closing = number(piece.anchor), number(piece.closing)
        if anchor is None or closing is None or anchor >= closing:
            return None
        header = skeleton.parts[piece.start.part][piece.anchor.offset : piece.start.offset]
        return Turn(anchor, closing, np.array(self._encode(header), dtype=np.int32))

    def masks(
        self, shapes: Sequence[Shape], ids: NDArray[np.int32], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Loss masks of a batch.

        Args:
            shapes: of each of n conversations.
            ids: tokens of all, end to end, shape (T,).
            lengths: tokens of each, shape (n,).

        Returns:
            The mask, shape (T,), and which conversations have the tokens that their shape foresees, shape (n,); the
            masks of the others mean nothing.
        """
        ends = np.cumsum(lengths)
        known = self._is_control[np.minimum(ids, len(self._is_control) - 1)]
        controls = np.flatnonzero(known)
        first = np.searchsorted(controls, ends - lengths)
        count = np.searchsorted(controls, ends) - first
        change = np.zeros(len(ids) + 1, dtype=np.int8)
        good = np.zeros(len(shapes), dtype=np.bool_)
        groups: dict[int, list[int]] = {}
        for number, shape in enumerate(shapes):
            groups.setdefault(id(shape), []).append(number)
        for members in groups.values():
            shape, rows = shapes[members[0]], np.array(members)
            rows = rows[count[rows] == len(shape.control)]
            at = controls[first[rows][:, None] + np.arange(len(shape.control))]
            right = (ids[at] == shape.control).all(axis=1)
            rows, at = rows[right], at[right]
            starts, stops, fits = _turns(shape, ids, at)
            good[rows[fits]] = True
            change[starts[fits]] += 1  # no two are the same
            change[stops[fits]] -= 1
        return np.cumsum(change[:-1], dtype=np.int8).view(np.uint8), good


def _turns(
    shape: Shape, ids: NDArray[np.int32], at: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """First and behind-last tokens of the turns, given the places of control tokens; which rows fit the headers."""
    starts = np.empty((len(at), len(shape.turns)), dtype=np.int64)
    stops, fits = np.empty_like(starts), np.ones(len(at), dtype=np.bool_)
    for k, turn in enumerate(shape.turns):
        begin, closing = at[:, turn.anchor], at[:, turn.closing]
        starts[:, k], stops[:, k] = begin + len(turn.header), closing + 1
        fits &= starts[:, k] <= closing  # else the header's own tokens are not all there
        inside = np.minimum(begin[:, None] + np.arange(len(turn.header)), closing[:, None])
        fits &= (ids[inside] == turn.header).all(axis=1)
    return starts, stops, fits


def _both(left: Callable[[str], str], right: Callable[[str], str]) -> Callable[[str], str]:
    """One function for a strip at each end; the usual ones without another call around them."""
    if left is _LEFT[_PAD] or right is _RIGHT[_PAD]:
        return right if left is _LEFT[_PAD] and right is not _RIGHT[_PAD] else left
    if left is str.lstrip and right is str.rstrip:
        return str.strip
    return lambda text: right(left(text))
