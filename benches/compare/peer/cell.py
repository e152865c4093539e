"""The DEQ-Transformer: one Transformer-XL layer with input injection, post-norm. What is constant
during a solve (normalised weights, keys and values of the memory, embedded distances, mask) is
computed once, as on our side.
"""

import math

import torch
import torch.nn.functional as F


def normed(weights, name):
    """A weight as length times direction, `[output, input]`."""
    direction, length = weights[name + ".weight_v"], weights[name + ".weight_g"]
    direction = direction.flatten(1)
    return direction * (length.flatten(1) / direction.norm(dim=1, keepdim=True))


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:])


class Context:
    """The constants of a solve."""

    def __init__(self, weights, injection, memory):
        attention = "func.dec_attn."
        self.heads, _ = weights[attention + "r_w_bias"].shape
        self.content_bias = weights[attention + "r_w_bias"][None, :, None]
        self.position_bias = weights[attention + "r_r_bias"][None, :, None]
        self.qkv = normed(weights, attention + "qkv_net")
        self.out = normed(weights, attention + "o_net")
        self.out_bias = weights[attention + "o_net.bias"]
        self.inner = normed(weights, "func.pos_ff.ff1_net")
        self.inner_bias = weights["func.pos_ff.ff1_net.bias"]
        self.outer = normed(weights, "func.pos_ff.ff2_net")
        self.outer_bias = weights["func.pos_ff.ff2_net.bias"]

        width = self.qkv.shape[1]
        past = 0 if memory is None else memory.shape[1]
        keys = injection.shape[1]
        self.time = keys - past
        self.injection = injection[:, past:]
        self.memory = None
        if past:
            kv = F.linear(memory, self.qkv[width:]) + injection[:, :past, width:]
            self.memory = [self.split(part) for part in kv.chunk(2, dim=2)]
        # The distances of all keys to the last query, far to near.
        distance = torch.arange(keys - 1, -1, -1.0)
        frequency = 1.0 / 10000.0 ** (torch.arange(0, width, 2.0) / width)
        angle = torch.outer(distance, frequency)
        position = torch.cat([angle.sin(), angle.cos()], dim=1)[None]
        position = F.linear(position, normed(weights, attention + "r_net"))
        self.distances = self.split(position).transpose(2, 3)
        query, key = torch.arange(self.time)[:, None], torch.arange(keys)[None]
        self.mask = torch.where(key > query + past, -1e9, 0.0)

    def split(self, x):
        batch, time, width = x.shape
        return x.view(batch, time, self.heads, width // self.heads).transpose(1, 2)

    def __call__(self, z):
        """One evaluation, `[batch, time, width]`."""
        y = layer_norm(z + self.attend(z))
        inner = F.relu(F.linear(y, self.inner, self.inner_bias))
        return layer_norm(y + F.linear(inner, self.outer, self.outer_bias))

    def attend(self, z):
        batch, time, width = z.shape
        qkv = F.linear(z, self.qkv) + self.injection
        query, key, value = [self.split(part) for part in qkv.chunk(3, dim=2)]
        if self.memory:
            key = torch.cat([self.memory[0], key], dim=2)
            value = torch.cat([self.memory[1], value], dim=2)
        scale = 1.0 / math.sqrt(width // self.heads)
        content = torch.matmul((query + self.content_bias) * scale, key.transpose(2, 3))
        position = torch.matmul((query + self.position_bias) * scale, self.distances)
        scores = content + shifted(position) + self.mask
        mixed = torch.matmul(torch.softmax(scores, dim=3), value)
        mixed = mixed.transpose(1, 2).reshape(batch, time, width)
        return F.linear(mixed, self.out, self.out_bias)


def shifted(x):
    """Scores by distance become scores by key: row `i` moves left by `time - 1 - i`."""
    batch, heads, time, keys = x.shape
    x = F.pad(x, (1, 0)).view(batch, heads, keys + 1, time)
    return x[:, :, 1:].reshape(batch, heads, time, keys)


class Model:
    """Embedding, injection and output layer around the cell; both adaptive if there are cutoffs."""

    def __init__(self, weights, cutoffs=()):
        self.weights = weights
        self.table = weights["word_emb.emb_layers.0.weight"]
        self.bias = weights["crit.out_layers.0.bias"]
        self.width = weights["inject_conv.weight"].shape[1]
        ends = [*cutoffs, None]
        self.clusters = list(zip([0, *cutoffs], ends)) if cutoffs else []

    def inject(self, tokens):
        embedded = self.embed(tokens) * math.sqrt(self.width)
        weight = self.weights["inject_conv.weight"].squeeze(2)
        return F.linear(embedded, weight, self.weights["inject_conv.bias"])

    def embed(self, tokens):
        if not self.clusters:
            return F.embedding(tokens, self.table)
        flat = tokens.flatten()
        vectors = torch.zeros(len(flat), self.width)
        for k, (start, end) in enumerate(self.clusters):
            rows = self.members(flat, start, end)
            own = F.embedding(flat[rows] - start, self.weights[f"word_emb.emb_layers.{k}.weight"])
            own = F.linear(own, self.weights[f"word_emb.emb_projs.{k}.weight"])
            vectors = vectors.index_copy(0, rows, own)
        return vectors.view(*tokens.shape, self.width)

    def members(self, tokens, start, end):
        inside = tokens >= start
        return (inside if end is None else inside & (tokens < end)).nonzero().flatten()

    def context(self, injection, memory_z=None, memory_injection=None):
        if memory_z is not None:
            injection = torch.cat([memory_injection, injection], dim=1)
        return Context(self.weights, injection, memory_z)

    def scores(self, hidden):
        return F.linear(hidden.flatten(0, 1), self.table, self.bias)

    def loss(self, hidden, targets):
        if not self.clusters:
            return F.cross_entropy(self.scores(hidden), targets)
        w, hidden = self.weights, hidden.flatten(0, 1)
        weight = torch.cat([self.table, w["crit.cluster_weight"]])
        bias = torch.cat([self.bias, w["crit.cluster_bias"]])
        seen = hidden @ w["crit.out_projs.0.weight"]
        head = torch.log_softmax(F.linear(seen, weight, bias), dim=1)
        total = 0.0
        for k, (start, end) in enumerate(self.clusters):
            rows = self.members(targets, start, end)
            own = targets[rows, None] - start
            if k == 0:
                total = total - head[rows].gather(1, own).sum()
                continue
            # The clusters' columns stand last, in the reverse order.
            seen = hidden[rows] @ w[f"word_emb.emb_projs.{k}.weight"]
            within = F.linear(
                seen, w[f"word_emb.emb_layers.{k}.weight"], w[f"crit.out_layers.{k}.bias"]
            )
            within = torch.log_softmax(within, dim=1).gather(1, own)
            total = total - within.sum() - head[rows, -k].sum()
        return total / len(targets)
