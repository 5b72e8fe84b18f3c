"""A live conversation with the JAX model, one frame at a time."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mvjax import tree, types
from mvjax.nn import attention, xattn
from mvjax.nn import model as model_lib
from mvjax.runtimes.jax import generate, sampling


class State(NamedTuple):
    """A live conversation between two frames.

    Attributes:
      cache: of the backbone; consumed by the next frame.
      column: ids that enter at the next call, delayed.
      heard: the user's last codes, as many frames as the largest delay.
      said: the assistant's last ids as chosen in each call, likewise.
      kv: of the image; may be replaced between frames.
      has_image: rows that see it; may be replaced between frames.
      key: of the conversation.
    """

    cache: attention.Cache | None  # None while `frame` holds it
    column: Int[Array, "B K"]
    heard: Int[Array, "B U lag"]
    said: Int[Array, "B Q lag"]
    kv: xattn.KeysValues | None
    has_image: Bool[Array, "B"]
    key: Key[Array, ""]


class FrameOut(NamedTuple):
    """What one frame gives.

    Attributes:
      text_ids: chosen in this call.
      audio_codes: of the latest frame that all levels have reached; -1 in the first `lag` calls.
      text_logits: float32.
      audio_logits: float32; level q is about frame s - delays[1 + q].
      gate: mean over channels and the last ten layers.
    """

    text_ids: Int[Array, "B"]
    audio_codes: Int[Array, "B Q"]
    text_logits: Float[Array, "B V"]
    audio_logits: Float[Array, "B Q C"]
    gate: Float[Array, "B"]


@dataclasses.dataclass(frozen=True)
class Session:
    """Talks frame by frame: `state = session.start(batch=1, kv=kv)`, then `session.frame` for each.

    Attributes:
      model: made from the config of the parameters.
      text_sampler: picks text.
      audio_sampler: picks codes.
    """

    model: model_lib.VisionSpeech
    text_sampler: sampling.Sampler = generate.GREEDY
    audio_sampler: sampling.Sampler = generate.GREEDY

    def start(
        self,
        *,
        batch: int,
        kv: xattn.KeysValues | None = None,
        has_image: Bool[Array, "B"] | None = None,
        key: Key[Array, ""] | None = None,
        max_frames: int | None = None,
    ) -> State:
        """Returns the state before the first frame; `max_frames` shortens the cache."""
        m = self.model.config
        lag, users = max(m.delays), m.codebooks - 1 - m.codebooks_out
        return State(
            cache=self.model.init_cache(batch, max_frames=max_frames),
            column=jnp.tile(model_lib.initial_ids(m)[None], (batch, 1)),
            heard=jnp.full((batch, users, lag), m.audio_vocab, jnp.int32),
            said=jnp.full((batch, m.codebooks_out, lag), types.ZERO_TOKEN, jnp.int32),
            kv=kv,
            has_image=jnp.ones(batch, bool) if has_image is None else has_image,
            key=jax.random.key(0) if key is None else key,
        )

    def frame(
        self, params: tree.Tree, state: State, user_codes: Int[Array, "B U"]
    ) -> tuple[State, FrameOut]:
        """Hears the user's codes of one frame (-1 where absent) and says one frame.

        The cache inside `state` is given up to be written in place: go on from the returned state.
        """
        assert state.cache is not None
        rest = state._replace(cache=None)
        cache, rest, out = _frame(self, params, state.cache, rest, user_codes)
        return rest._replace(cache=cache), out


@functools.partial(jax.jit, static_argnames="session", donate_argnames="cache")
def _frame(
    session: Session,
    params: tree.Tree,
    cache: attention.Cache,
    state: State,
    user_codes: Int[Array, "B U"],
) -> tuple[attention.Cache, State, FrameOut]:
    m = session.model.config
    s, lag, Q = cache.position, max(m.delays), m.codebooks_out
    heard = jnp.concatenate([state.heard, user_codes[:, :, None]], axis=2)
    starting = s < jnp.array(m.delays, jnp.int32)
    wanted = jnp.where(starting, model_lib.initial_ids(m), types.UNGENERATED)
    wanted = jnp.tile(wanted[None], (user_codes.shape[0], 1))
    column = state.column
    for u, delay in enumerate(m.delays[1 + Q :]):
        now = heard[:, u, lag - delay]
        wanted = wanted.at[:, 1 + Q + u].set(now)
        if m.stream.user_early:
            column = column.at[:, 1 + Q + u].set(jnp.where(s > delay, now, column[:, 1 + Q + u]))
    out = generate.advance(
        session.model,
        params,
        cache,
        column,
        wanted,
        kv=state.kv,
        seen=state.has_image,
        key=jax.random.fold_in(state.key, s),
        samplers=(session.text_sampler, session.audio_sampler),
    )
    said = jnp.concatenate([state.said, out.column[:, 1 : 1 + Q, None]], axis=2)
    complete = [said[:, q, delay] for q, delay in enumerate(m.delays[1 : 1 + Q])]
    codes = jnp.where(s < lag, types.ZERO_TOKEN, jnp.stack(complete, axis=1))
    state = state._replace(column=out.column, heard=heard[:, :, 1:], said=said[:, :, 1:])
    frame_out = FrameOut(out.column[:, 0], codes, out.text_logits, out.audio_logits, out.gate)
    return out.cache, state, frame_out
