"""The compact key-value cache of a DMS model, and attention over it.

Heads keep different numbers of tokens, so nothing here is rectangular: each layer holds one pool of rows, and each
(sequence, KV head) owns a segment of it, a little longer than what it stores. Evicted rows are overwritten by new
ones, so the memory allocated follows the memory in use (`DmsCache.kv_memory()` reports both).

Letters: B sequences, H query heads, G KV heads, R = H / G, N = B * G, T tokens, d head dimension.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, CacheLayerMixin


# Positions of stored keys that have left the window: they stay visible for good.
LONG_AGO = -(2**30)
# Prefill runs over blocks of queries, so that masks stay small: at most this many queries and mask elements a block.
BLOCK_TOKENS = 256
BLOCK_ELEMENTS = 2**24
# Where decoding goes head by head over the rows as they lie. Elsewhere it copies them into a rectangle first: one large
# operation instead of many small ones, and no waiting for the device to say how many rows each head has.
HEAD_BY_HEAD_DEVICES = ("cpu",)


class DmsCacheLayer(CacheLayerMixin):
    """One layer's keys and values.

    `keys`, `values` [pool rows, d]: head n owns rows start[n] .. start[n] + capacity[n], of which the first count[n]
    are live. The tokens still inside the window are tracked by a ring of window + 1 entries, indexed by position modulo
    its length: `ring_slot` [N, window + 1] is the row of that token within its segment, `ring_evict` its decision.
    The entry a new token takes is therefore that of the token which leaves the window, and an evicted token's row is
    where the new token goes.
    """

    is_sliding = False

    def __init__(self, window, decision_shift):
        super().__init__()
        self.window = window
        self.shift = decision_shift
        self.tokens_seen = 0  # padding included, as generate() counts

    # --- storage -----------------------------------------------------------------------------------------------------

    def lazy_initialization(self, key_states, value_states=None):
        batch, self.num_kv_heads, _, head_dim = key_states.shape
        num = batch * self.num_kv_heads
        ring = self.window + 1
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros(0, head_dim)
        self.values = key_states.new_zeros(0, head_dim)
        self.start = torch.zeros(num, dtype=torch.int64, device=self.device)
        self.count = torch.zeros_like(self.start)
        self.seen = torch.zeros_like(self.start)  # tokens, padding not included
        self.ring_slot = torch.zeros(num, ring, dtype=torch.int32, device=self.device)
        self.ring_evict = torch.zeros(num, ring, dtype=torch.bool, device=self.device)
        self.capacity = [0] * num
        self.longest = 0  # at least max(count), known without asking the device
        self.room = 0  # tokens that every head can still take without a new pool
        self.is_initialized = True

    def _gather(self):
        """All rows as rectangles [N, longest, d], and which of them are live."""
        row = torch.arange(self.longest, device=self.device)
        index = (self.start[:, None] + row).clamp_(max=max(self.keys.shape[0] - 1, 0)).flatten()
        shape = (self.start.shape[0], self.longest, self.keys.shape[1])
        keys = self.keys.index_select(0, index).view(shape)
        values = self.values.index_select(0, index).view(shape)
        return keys, values, row < self.count[:, None]

    def _store(self, keys, values, keep):
        """Replaces the pool by the rows of keys, values [N, rows, d] that are marked in keep [N, rows]."""
        self.count = keep.sum(1)
        counts = self.count.tolist()
        self.capacity = [n + max(8, n // 16) for n in counts]
        capacity = torch.tensor(self.capacity, dtype=torch.int64, device=self.device)
        self.start = capacity.cumsum(0) - capacity
        self.longest = max(counts)
        self.room = min(c - n for c, n in zip(self.capacity, counts))
        place = (self.start[:, None] + keep.cumsum(1) - 1)[keep]
        pool = (sum(self.capacity), keys.shape[-1])
        self.keys = keys.new_zeros(pool).index_copy(0, place, keys[keep])
        self.values = values.new_zeros(pool).index_copy(0, place, values[keep])

    def _make_room(self):
        counts = self.count.tolist()
        self.longest = max(counts)
        self.room = min(c - n for c, n in zip(self.capacity, counts))
        if self.room == 0:
            self._store(*self._gather())

    def _leave_inference_mode(self):
        """Tensors made under torch.inference_mode() refuse in-place updates outside of it: a cache may cross over."""
        for name in ("keys", "values", "start", "count", "seen", "ring_slot", "ring_evict"):
            setattr(self, name, getattr(self, name).clone())

    # --- attention ---------------------------------------------------------------------------------------------------

    def attend(self, query, key, value, evict, valid, scaling, keep_state=True):
        """Attention of T new tokens over what is stored and over each other; then stores them.

        query [B, H, T, d]; key, value [B, G, T, d], after RoPE; evict [B, G, T], eviction logit > 0, or None for no
        eviction; valid [B, T], False at padding, or None. Returns [B, H, T, d], anything finite at padding.
        """
        if not self.is_initialized:
            self.lazy_initialization(key, value)
        if self.keys.is_inference() and not torch.is_inference_mode_enabled():
            self._leave_inference_mode()
        batch, num_kv, tokens, head_dim = key.shape
        num = batch * num_kv
        if num != self.start.shape[0]:
            raise ValueError(
                f"the cache holds {self.start.shape[0] // num_kv} sequences, but the input has {batch}"
            )
        query = query.reshape(num, -1, tokens, head_dim)  # [N, R, T, d]
        key, value = key.reshape(num, tokens, head_dim), value.reshape(num, tokens, head_dim)
        if evict is None:
            evict = torch.zeros(num, tokens, dtype=torch.bool, device=self.device)
        evict = evict.reshape(num, tokens)

        if tokens == 1 and valid is None:
            self._append(key[:, 0], value[:, 0], evict)
            output = self._attend_stored(query, scaling)
        else:
            if valid is None:
                valid = torch.ones(batch, tokens, dtype=torch.bool, device=self.device)
            valid = valid.to(self.device).repeat_interleave(num_kv, 0)
            # Padding anywhere becomes left padding: then the token before a token is its neighbour.
            order = valid.to(torch.int8).argsort(dim=1, stable=True)
            key, value = (x.gather(1, order[:, :, None].expand_as(x)) for x in (key, value))
            query = query.gather(2, order[:, None, :, None].expand_as(query))
            evict, valid = evict.gather(1, order), valid.gather(1, order)
            outputs, begin = [], 0
            while begin < tokens:
                length = BLOCK_ELEMENTS // (num * (self.longest + BLOCK_TOKENS))
                end = min(begin + max(16, min(length, BLOCK_TOKENS)), tokens)
                block = slice(begin, end)
                outputs.append(
                    self._attend_block(
                        query[:, :, block], key[:, block], value[:, block], evict[:, block], valid[:, block], scaling,
                        store=keep_state or end < tokens,
                    )
                )
                begin = end
            output = torch.cat(outputs, 2)
            output = torch.empty_like(output).scatter(2, order[:, None, :, None].expand_as(output), output)
        self.tokens_seen += tokens
        return output.reshape(batch, -1, tokens, head_dim)

    def _append(self, key, value, evict):
        """Stores one token a head: key, value [N, d], evict [N, 1]. Nothing here waits for the device."""
        if self.room == 0:
            self._make_room()
        ring = self.window + 1
        entry = (self.seen % ring)[:, None]
        if self.shift > 0:
            self.ring_evict.scatter_(1, ((self.seen - self.shift) % ring)[:, None], evict)
        leaving = self.ring_evict.gather(1, entry).squeeze(1) & (self.seen >= ring)
        slot = torch.where(leaving, self.ring_slot.gather(1, entry).squeeze(1), self.count)
        self.keys.index_copy_(0, self.start + slot, key)
        self.values.index_copy_(0, self.start + slot, value)
        self.ring_slot.scatter_(1, entry, slot[:, None].to(torch.int32))
        self.ring_evict.scatter_(1, entry, evict if self.shift == 0 else torch.zeros_like(evict))
        self.count = self.count + ~leaving
        self.seen = self.seen + 1
        self.longest += 1
        self.room -= 1

    def _attend_stored(self, query, scaling):
        """Attention of the token just appended: everything stored is visible to it. query [N, R, 1, d]."""
        if self.device.type in HEAD_BY_HEAD_DEVICES:
            outputs = []
            for head_query, start, count in zip(query, self.start.tolist(), self.count.tolist()):
                rows = slice(start, start + count)
                outputs.append(
                    scaled_dot_product_attention(
                        head_query.view(1, 1, -1, query.shape[3]),
                        self.keys[None, None, rows],
                        self.values[None, None, rows],
                        scale=scaling,
                    )
                )
            return torch.cat(outputs, 0).transpose(1, 2)
        keys, values, live = self._gather()
        output = scaled_dot_product_attention(
            query.transpose(1, 2), keys[:, None], values[:, None], attn_mask=live[:, None, None], scale=scaling
        )
        return output.transpose(1, 2)

    def _attend_block(self, query, key, value, evict, valid, scaling, store):
        """The same for a block of tokens: query [N, R, n, d]; key, value [N, n, d]; evict, valid [N, n]."""
        num, tokens = evict.shape
        ring = self.window + 1
        old_keys, old_values, live = self._gather()
        rows = self.longest

        # Positions and decisions of the stored tokens; those that this block decides come first.
        seen = self.seen[:, None]
        first = tokens - valid.sum(1, keepdim=True)  # of the block's tokens that is not padding
        for i in range(min(self.shift, tokens)):
            decision = evict.gather(1, (first + i).clamp_(max=tokens - 1)) & (first + i < tokens)
            self.ring_evict.scatter_(1, (seen + i - self.shift) % ring, decision)
        entries = torch.arange(ring, device=self.device)
        entry_position = seen - 1 - (seen - 1 - entries) % ring
        column = torch.where(entry_position >= 0, self.ring_slot, rows).to(torch.int64)  # the extra column is dropped
        old_position = torch.full((num, rows + 1), LONG_AGO, dtype=torch.int64, device=self.device)
        old_position = old_position.scatter_(1, column, entry_position)[:, :rows]
        old_evict = torch.zeros(num, rows + 1, dtype=torch.bool, device=self.device)
        old_evict = old_evict.scatter_(1, column, self.ring_evict)[:, :rows]
        # ... and of the new ones. The newest `shift` are undecided, hence kept.
        new_position = seen + valid.cumsum(1) - 1
        new_evict = torch.zeros_like(evict)
        new_evict[:, : max(tokens - self.shift, 0)] = evict[:, self.shift :]

        keys, values = torch.cat([old_keys, key], 1), torch.cat([old_values, value], 1)
        exists = torch.cat([live, valid], 1)
        evicted = torch.cat([old_evict, new_evict], 1)
        position = torch.cat([old_position, new_position], 1).to(torch.int32)

        distance = position[:, rows:, None] - position[:, None]  # [N, n, rows + n]
        visible = (distance >= 0) & exists[:, None] & ~(evicted[:, None] & (distance > self.window))
        # A padding query sees itself: its output is never used, but it must be finite.
        visible[:, :, rows:].diagonal(dim1=1, dim2=2).fill_(True)
        output = scaled_dot_product_attention(
            query,
            keys[:, None].expand(-1, query.shape[1], -1, -1),
            values[:, None].expand(-1, query.shape[1], -1, -1),
            attn_mask=visible[:, None],
            scale=scaling,
        )

        if store:
            self.seen = self.seen + valid.sum(1)
            age = (self.seen[:, None] - 1) - position
            keep = exists & ~(evicted & (age > self.window))
            column = torch.where(exists & (age <= self.window), position % ring, ring).to(torch.int64)
            slot = torch.zeros(num, ring + 1, dtype=torch.int32, device=self.device)
            self.ring_slot = slot.scatter_(1, column, (keep.cumsum(1) - 1).to(torch.int32))[:, :ring].contiguous()
            decided = torch.zeros(num, ring + 1, dtype=torch.bool, device=self.device)
            self.ring_evict = decided.scatter_(1, column, evicted)[:, :ring].contiguous()
            self._store(keys, values, keep)
        return output

    # --- what transformers asks of a cache layer ---------------------------------------------------------------------

    def update(self, key_states, value_states, cache_kwargs=None):
        raise NotImplementedError("a DMS cache needs eviction decisions with its keys: it works only with DMS models")

    def get_seq_length(self, cache_position=None):
        return self.tokens_seen

    def get_mask_sizes(self, cache_position):
        return self.tokens_seen + cache_position.shape[0], 0

    def get_max_cache_shape(self):
        return -1

    @property
    def max_batch_size(self):
        return self.start.shape[0] // self.num_kv_heads if self.is_initialized else 0

    def reset(self):
        self.__init__(self.window, self.shift)

    def crop(self, max_length):
        if max_length < 0 or max_length < self.tokens_seen:
            raise NotImplementedError(
                "a DMS cache cannot be cropped, since evicted tokens cannot come back. Assisted and prompt-lookup "
                "decoding need it: use sampling, greedy or beam search instead"
            )

    def _select(self, sequences):
        if not self.is_initialized:
            return
        heads = torch.arange(self.num_kv_heads, device=self.device)
        heads = (sequences.to(self.device)[:, None] * self.num_kv_heads + heads).flatten()
        keys, values, live = self._gather()
        self.seen = self.seen[heads]
        self.ring_slot, self.ring_evict = self.ring_slot[heads], self.ring_evict[heads]
        self._store(keys[heads], values[heads], live[heads])

    def reorder_cache(self, beam_idx):
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats):
        self._select(torch.arange(self.max_batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices):
        self._select(torch.arange(self.max_batch_size)[indices.cpu()])

    def memory(self):
        """Bytes: (live keys and values, everything allocated, what a dense cache of the same tokens would hold)."""
        if not self.is_initialized:
            return 0, 0, 0
        row_bytes = 2 * self.keys.shape[1] * self.keys.element_size()
        state = (self.keys, self.values, self.start, self.count, self.seen, self.ring_slot, self.ring_evict)
        allocated = sum(tensor.untyped_storage().nbytes() for tensor in state)
        return int(self.count.sum()) * row_bytes, allocated, int(self.seen.sum()) * row_bytes


class DmsCache(Cache):
    """The cache of a DMS model: pass one to forward() or generate() to keep it over several turns."""

    def __init__(self, config):
        super().__init__(
            layers=[
                DmsCacheLayer(config.dms_window, config.dms_decision_shift) for _ in range(config.num_hidden_layers)
            ]
        )

    # Whether some row was given padding, which later attention masks must repeat.
    has_padding = False

    def tokens_read(self):
        """[B]: tokens read so far, padding not included."""
        return self.layers[0].seen[:: self.layers[0].num_kv_heads]

    def kv_memory(self):
        """Bytes over all layers: live keys and values, allocated (spare rows and bookkeeping included), and what a
        dense cache of the same tokens holds."""
        live, allocated, dense = (sum(part) for part in zip(*(layer.memory() for layer in self.layers)))
        return {"live_bytes": live, "allocated_bytes": allocated, "dense_bytes": dense}
