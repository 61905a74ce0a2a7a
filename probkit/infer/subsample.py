"""Minibatches: the plates of a NumPyro function that subsample, their rows drawn epoch by epoch or taken whole."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray
from numpyro import handlers
from numpyro.primitives import Messenger

#: Rounds of the cipher that shuffles rows.
ROUNDS = 6
#: Up to this many rows are shuffled outright: a cipher on so few bits is not quite even.
FEW = 1024


def shuffled(index: Int[Array, " n"], key: PRNGKeyArray, size: int) -> Int[Array, " n"]:
    """Where a random permutation of ``range(size)`` sends some of its entries; the permutation is never held.

    A Feistel cipher on the least number of bits that holds ``size``, walked until it lands inside: exact, and O(n)
    whatever the size.

    Args:
        index: entries, each in ``range(size)``.
        key: fixes the permutation.
        size: number of entries in all, below 2^31.

    References:
        Black and Rogaway (2002), Ciphers with arbitrary finite domains, CT-RSA, section 3 (cycle walking).
    """
    if size <= FEW:
        return jax.random.permutation(key, size)[index]
    bits = (size - 1).bit_length()
    low = bits // 2
    keys = jax.random.bits(key, (ROUNDS,), jnp.uint32)

    def cipher(x: Array) -> Array:
        left, right, width = x >> low, x & ((1 << low) - 1), bits - low
        for k in keys:
            # Each round changes the left part by the right one, and swaps them: their widths swap as well.
            left, right = right, left ^ (_hash(right ^ k) & ((1 << width) - 1))
            width = bits - width
        return (left << low) | right if width == bits - low else (left << (bits - low)) | right

    start = cipher(index.astype(jnp.uint32))
    walk = lambda x: jnp.where(x < size, x, cipher(x))
    return jax.lax.while_loop(lambda x: jnp.any(x >= size), walk, start).astype(index.dtype)


def _hash(x: Array) -> Array:
    """Mix 32 bits (the finaliser of MurmurHash3, Appleby 2011)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


class Epochs(Messenger):
    """A NumPyro function whose subsampling plates walk through all rows before any comes again.

    Every epoch has its own permutation, so each batch by itself is a random one, and over an epoch the noise of
    minibatches cancels (to first order), which independent batches do not do. NumPyro's own draw on a CPU also holds
    an index of all rows.

    Args:
        fn: the function.
        key: fixes the permutations.
        step: number of the batch, from 0.

    References:
        Gürbüzbalaban, Ozdaglar and Parrilo (2021), Why random reshuffling beats stochastic gradient descent,
        Mathematical Programming 186.
    """

    def __init__(self, fn: Any, key: PRNGKeyArray, step: Int[Array, ""]) -> None:
        self.key, self.step = key, step
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Give a subsampling plate its rows."""
        if msg["type"] != "plate" or msg["value"] is not None:
            return
        size, batch = msg["args"]
        epoch, place = jnp.divmod(self.step, size // batch)
        key = jax.random.fold_in(jax.random.fold_in(self.key, zlib.crc32(msg["name"].encode())), epoch)
        msg["value"] = shuffled(place * batch + jnp.arange(batch), key, size)


class WholePlates(Messenger):
    """A NumPyro function whose subsampling plates take all rows."""

    def process_message(self, msg: Any) -> None:
        """Give a subsampling plate all its rows."""
        if msg["type"] == "plate" and msg["value"] is None:
            size, _ = msg["args"]
            msg["args"], msg["value"] = (size, size), jnp.arange(size)


class Plates(NamedTuple):
    """What a NumPyro function does beside sampling.

    Attributes:
        batches: (size, rows at a time) of each subsampling plate, by name.
        local: latent sites inside one.
        params: its ``numpyro.param`` sites.
    """

    batches: dict[str, tuple[int, int]]
    local: list[str]
    params: list[str]


def plates_of(fn: Any, args: tuple, kwargs: dict) -> Plates:
    """What a NumPyro function does beside sampling; nothing is computed."""
    found: dict[str, dict] = {}

    def run() -> None:
        key = jax.random.key(0)
        found.update(handlers.trace(handlers.seed(Epochs(fn, key, jnp.array(0)), key)).get_trace(*args, **kwargs))

    jax.eval_shape(run)
    plates = {name: site["args"] for name, site in found.items() if site["type"] == "plate"}
    batches = {name: (size, batch) for name, (size, batch) in plates.items() if batch not in (None, size)}
    latent = [n for n, s in found.items() if s["type"] == "sample" and not s["is_observed"]]
    local = [n for n in latent if any(frame.name in batches for frame in found[n]["cond_indep_stack"])]
    return Plates(batches, local, [n for n, s in found.items() if s["type"] == "param"])
