"""Architectures that flowstudy did not make: from the configurations of transformers and diffusers, and by hand.

All are small and have random weights; nothing is downloaded.  Each name is a function that builds the model, and
`FOREIGN[name]` says what goes in, which loss is differentiated, and of what a Jacobian is taken.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SAMPLES, TOKENS, VOCABULARY, CLASSES = 4, 6, 40, 5


@dataclass(frozen=True)
class Foreign:
    """Attributes: build; x, what goes in; y, targets; of_flow, options of `gradient_flow`; of_spectrum, those of
    `jacobian_spectrum` (None: it has no Jacobian by sample, or one that mixes samples); source, where it is from.
    """

    build: Callable[[], nn.Module]
    x: object
    y: object = None
    of_flow: dict = field(default_factory=dict)
    of_spectrum: dict | None = field(default_factory=dict)
    source: str = "by hand"


FOREIGN: dict[str, Foreign] = {}


def foreign(x: object, y: object = None, *, spectrum: dict | None = None, jacobian: bool = True,
            source: str = "by hand", **of_flow: object) -> Callable:
    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        FOREIGN[build.__name__] = Foreign(build, x, y, of_flow, (spectrum or {}) if jacobian else None, source)
        return build
    return register


draw = torch.Generator().manual_seed(0)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw)


def labels(*shape: int, classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, shape, generator=draw)


IDS, MASK = labels(SAMPLES, TOKENS, classes=VOCABULARY), torch.ones(SAMPLES, TOKENS, dtype=torch.int64)
IMAGES, VECTORS, SERIES = numbers(SAMPLES, 3, 16, 16), numbers(SAMPLES, 8), numbers(SAMPLES, TOKENS, 8)
Y = labels(SAMPLES)
HF, DIFFUSERS = "transformers", "diffusers"
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24, "max_position_embeddings": 32}


def of_config(kind: str, config: str, **settings: object) -> nn.Module:
    """A model of transformers in evaluation mode, its attention in plain operations."""
    import transformers

    model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
    model.config._attn_implementation = "eager"
    return model.eval()


# --- language ---------------------------------------------------------------------------------------------------------


@foreign({"input_ids": IDS, "labels": IDS}, loss="output", jacobian=False, source=HF)
def gpt2() -> nn.Module:
    return of_config("GPT2LMHeadModel", "GPT2Config", vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2,
                     n_head=2)


@foreign({"inputs_embeds": numbers(SAMPLES, TOKENS, 16)}, labels(SAMPLES, TOKENS, classes=VOCABULARY),
         spectrum={"output": "logits", "wrt": "inputs_embeds"}, source=HF)
def gpt2_from_embeddings() -> nn.Module:
    return gpt2()


@foreign({"input_ids": IDS, "attention_mask": MASK}, labels(SAMPLES, TOKENS, classes=VOCABULARY),
         spectrum={"output": "logits", "start": "model.embed_tokens"}, source=HF)
def llama() -> nn.Module:
    return of_config("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=1, **SMALL)


@foreign({"input_ids": IDS}, labels(SAMPLES, TOKENS, classes=VOCABULARY),
         spectrum={"output": "logits", "start": "model.embed_tokens"}, source=HF)
def qwen2() -> nn.Module:
    return of_config("Qwen2ForCausalLM", "Qwen2Config", num_key_value_heads=1, **SMALL)


@foreign({"input_ids": IDS}, labels(SAMPLES, TOKENS, classes=VOCABULARY),
         spectrum={"output": "logits", "start": "model.embed_tokens"}, source=HF)
def gemma() -> nn.Module:
    return of_config("GemmaForCausalLM", "GemmaConfig", num_key_value_heads=1, head_dim=8, **SMALL)


@foreign({"input_ids": IDS}, labels(SAMPLES, TOKENS, classes=VOCABULARY), jacobian=False, source=HF)
def mixtral() -> nn.Module:
    return of_config("MixtralForCausalLM", "MixtralConfig", num_key_value_heads=1, num_local_experts=3,
                     experts_implementation="eager", **SMALL)


@foreign({"input_ids": IDS, "attention_mask": MASK}, Y, spectrum={"output": "logits", "start": "bert.embeddings"},
         source=HF)
def bert() -> nn.Module:
    return of_config("BertForSequenceClassification", "BertConfig", num_labels=CLASSES, **SMALL)


@foreign({"input_ids": IDS, "attention_mask": MASK}, Y, spectrum={"output": "logits", "start": "distilbert.embeddings"},
         source=HF)
def distilbert() -> nn.Module:
    return of_config("DistilBertForSequenceClassification", "DistilBertConfig", vocab_size=VOCABULARY, dim=16,
                     n_layers=2, n_heads=2, hidden_dim=24, num_labels=CLASSES)


@foreign({"input_ids": IDS, "labels": IDS}, loss="output", jacobian=False, source=HF)
def t5() -> nn.Module:
    return of_config("T5ForConditionalGeneration", "T5Config", vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24,
                     num_layers=2, num_heads=2, decoder_start_token_id=0)


@foreign({"input_ids": IDS, "labels": IDS}, loss="output", jacobian=False, source=HF)
def bart() -> nn.Module:
    return of_config("BartForConditionalGeneration", "BartConfig", vocab_size=VOCABULARY, d_model=16, encoder_layers=2,
                     decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
                     decoder_ffn_dim=24, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                     decoder_start_token_id=0)


@foreign({"input_ids": IDS}, labels(SAMPLES, TOKENS, classes=VOCABULARY), jacobian=False, source=HF)
def mamba() -> nn.Module:
    return of_config("MambaForCausalLM", "MambaConfig", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2,
                     state_size=4)


# --- images, sound, both ----------------------------------------------------------------------------------------------


@foreign({"pixel_values": IMAGES}, Y, spectrum={"output": "logits"}, source=HF)
def vit() -> nn.Module:
    return of_config("ViTForImageClassification", "ViTConfig", image_size=16, patch_size=4, hidden_size=16,
                     num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=CLASSES)


@foreign({"pixel_values": numbers(SAMPLES, 3, 32, 32)}, Y, spectrum={"output": "logits"}, source=HF)
def swin() -> nn.Module:
    return of_config("SwinForImageClassification", "SwinConfig", image_size=32, patch_size=2, embed_dim=8,
                     depths=[2, 2], num_heads=[2, 2], window_size=4, num_labels=CLASSES)


@foreign({"pixel_values": IMAGES}, Y, spectrum={"output": "logits"}, source=HF)
def convnext() -> nn.Module:
    return of_config("ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[8, 16], depths=[2, 2],
                     num_stages=2, patch_size=2, num_labels=CLASSES)


@foreign({"pixel_values": numbers(SAMPLES, 3, 32, 32)}, Y, spectrum={"output": "logits"}, source=HF)
def efficientnet() -> nn.Module:
    return of_config("EfficientNetForImageClassification", "EfficientNetConfig", image_size=32, width_coefficient=0.25,
                     depth_coefficient=0.3, hidden_dim=320, num_labels=CLASSES)


@foreign({"pixel_values": numbers(SAMPLES, 3, 32, 32)}, Y, spectrum={"output": "logits"}, source=HF)
def resnet() -> nn.Module:
    return of_config("ResNetForImageClassification", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 16],
                     depths=[2, 2], layer_type="basic", num_labels=CLASSES)


@foreign({"input_ids": IDS, "pixel_values": IMAGES, "return_loss": True}, loss="output", jacobian=False, source=HF)
def clip() -> nn.Module:
    text = {k: v for k, v in SMALL.items() if k != "vocab_size"} | {"vocab_size": VOCABULARY, "eos_token_id": 2}
    vision = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 24}
    return of_config("CLIPModel", "CLIPConfig", text_config=text, vision_config=vision, projection_dim=8)


@foreign({"input_features": numbers(SAMPLES, 8, 16), "labels": IDS}, loss="output", jacobian=False, source=HF)
def whisper() -> nn.Module:
    return of_config("WhisperForConditionalGeneration", "WhisperConfig", vocab_size=VOCABULARY, num_mel_bins=8,
                     d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                     decoder_attention_heads=2,
                     encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=8, max_target_positions=16,
                     pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3)


@foreign({"input_values": numbers(SAMPLES, 400)}, Y, spectrum={"output": "logits"}, source=HF)
def wav2vec2() -> nn.Module:
    return of_config("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", hidden_size=16, num_hidden_layers=2,
                     num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8), conv_stride=(5, 4),
                     conv_kernel=(10, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
                     num_conv_pos_embedding_groups=2, classifier_proj_size=8, num_labels=CLASSES)


@foreign({"sample": numbers(SAMPLES, 3, 8, 8), "timestep": torch.tensor([1, 5, 9, 20])}, numbers(SAMPLES, 3, 8, 8),
         loss="mse", output="sample", spectrum={"output": "sample", "wrt": "sample"}, source=DIFFUSERS)
def unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                       down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=4,
                       up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()


@foreign({"sample": IMAGES}, IMAGES, loss="mse", output="sample", spectrum={"output": "sample"}, source=DIFFUSERS)
def autoencoder_kl() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=16).eval()


# --- by hand ----------------------------------------------------------------------------------------------------------


class Of(nn.Module):
    """A model from its parts and a function of them and the inputs."""

    def __init__(self, function: Callable, **parts: nn.Module):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.function(self, *args, **kwargs)


@foreign(SERIES, Y)
def lstm() -> nn.Module:
    return Of(lambda m, x: m.head(m.lstm(x)[0][:, -1]), lstm=nn.LSTM(8, 10, 2, batch_first=True, bidirectional=True),
              head=nn.Linear(20, CLASSES))


@foreign((SERIES, torch.tensor([6, 3, 5, 2])), Y, jacobian=False)
def packed_lstm() -> nn.Module:
    def run(m: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return m.head(m.lstm(packed)[1][0][-1])
    return Of(run, lstm=nn.LSTM(8, 10, batch_first=True), head=nn.Linear(10, CLASSES))


@foreign(SERIES, Y)
def gru_with_attention() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        h, _ = m.gru(x)
        return m.head((torch.softmax(m.score(h), 1) * h).sum(1))
    return Of(run, gru=nn.GRU(8, 10, batch_first=True), score=nn.Linear(10, 1), head=nn.Linear(10, CLASSES))


@foreign(VECTORS, Y)
def neural_ode_with_adjoint() -> nn.Module:
    return Of(lambda m, x: m.head(Adjoint.apply(m.field, m.encode(x), *m.field.parameters())), encode=nn.Linear(8, 6),
              field=nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), head=nn.Linear(6, CLASSES))


class Adjoint(torch.autograd.Function):
    """20 Euler steps whose states are made again, backwards, in the backward pass."""

    STEP, STEPS = 0.05, 20

    @staticmethod
    def forward(ctx, field: nn.Module, h: Tensor, *weights: Tensor) -> Tensor:
        states = [h]
        with torch.no_grad():
            for _ in range(Adjoint.STEPS):
                states.append(states[-1] + Adjoint.STEP * field(states[-1]))
        ctx.field = field
        ctx.save_for_backward(*states)
        return states[-1].clone()

    @staticmethod
    def backward(ctx, error: Tensor) -> tuple:
        weights = list(ctx.field.parameters())
        total = [torch.zeros_like(w) for w in weights]
        for state in reversed(ctx.saved_tensors[:-1]):
            with torch.enable_grad():
                h = state.detach().requires_grad_()
                after = h + Adjoint.STEP * ctx.field(h)
                error, *own = torch.autograd.grad(after, [h, *weights], error)
            total = [a + b for a, b in zip(total, own, strict=True)]
        return None, error, *total


@foreign(VECTORS, Y)
def deep_equilibrium() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        drive, z = m.drive(x), torch.zeros(len(x), 6, dtype=x.dtype)
        with torch.no_grad():
            for _ in range(60):
                z = torch.tanh(0.4 * m.state(z) + drive)
        start = z.detach().requires_grad_()
        z = torch.tanh(0.4 * m.state(start) + drive)
        again = torch.tanh(0.4 * m.state(start) + drive.detach())

        def implicit(error: Tensor) -> Tensor:
            found = error
            for _ in range(60):
                found = torch.autograd.grad(again, start, found, retain_graph=True)[0] + error
            return found
        if z.requires_grad:
            z.register_hook(implicit)
        return m.head(z)
    return Of(run, drive=nn.Linear(8, 6), state=nn.Linear(6, 6), head=nn.Linear(6, CLASSES))


class SpectralConvolution(nn.Module):
    """Li et al. 2021: the lowest frequencies times complex weights."""

    def __init__(self, channels: int, modes: int):
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(channels, channels, modes, dtype=torch.complex64) / channels)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        out = torch.zeros_like(spectrum)
        out[..., :self.modes] = torch.einsum("bix,iox->box", spectrum[..., :self.modes], self.weight)
        return torch.fft.irfft(out, n=x.shape[-1])


@foreign(numbers(SAMPLES, 1, 16), numbers(SAMPLES, 1, 16), loss="mse")
def fourier_neural_operator() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = m.lift(x)
        for convolution, bypass in zip(m.convolutions, m.bypasses, strict=True):
            h = F.gelu(convolution(h) + bypass(h))
        return m.project(h)
    return Of(run, lift=nn.Conv1d(1, 6, 1), project=nn.Conv1d(6, 1, 1),
              convolutions=nn.ModuleList(SpectralConvolution(6, 4) for _ in range(3)),
              bypasses=nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(3)))


ADJACENCY = (torch.rand(7, 7, generator=draw) < 0.4).float() + torch.eye(7)


@foreign(numbers(SAMPLES, 7, 8), Y)
def graph_convolution() -> nn.Module:
    model = Of(lambda m, x: m.head(torch.relu(m.adjacency @ m.second(torch.relu(m.adjacency @ m.first(x)))).mean(1)),
               first=nn.Linear(8, 10), second=nn.Linear(10, 10), head=nn.Linear(10, CLASSES))
    model.adjacency = ADJACENCY / ADJACENCY.sum(1, keepdim=True)   # an attribute of float32, no buffer
    return model


@foreign((VECTORS, torch.eye(SAMPLES) + 1), Y, jacobian=False)
def graph_of_the_batch() -> nn.Module:
    return Of(lambda m, x, links: m.head(torch.relu(links @ m.first(x))), first=nn.Linear(8, 10),
              head=nn.Linear(10, CLASSES))


@foreign(VECTORS, numbers(SAMPLES, 8), loss="mse")
def invertible() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        for scale, shift in zip(m.scales, m.shifts, strict=True):
            a, b = x.chunk(2, 1)
            x = torch.cat([b * torch.exp(torch.tanh(scale(a))) + shift(a), a], 1)
        return x
    return Of(run, scales=nn.ModuleList(nn.Linear(4, 4) for _ in range(6)),
              shifts=nn.ModuleList(nn.Linear(4, 4) for _ in range(6)))


@foreign(numbers(SAMPLES, 2), torch.zeros(SAMPLES, 1), loss="mse", spectrum={"method": "dense"})
def physics_informed() -> nn.Module:
    """The residual of u_t = u_xx, whose derivatives are taken in the forward pass."""
    def run(m: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            first = torch.autograd.grad(m.net(x).sum(), x, create_graph=True)[0]
            second = torch.autograd.grad(first[:, 1].sum(), x, create_graph=True)[0]
        return first[:, :1] - second[:, 1:]
    return Of(run, net=nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1)))


def evidence_bound(output: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    seen, mean, log_variance = output
    return F.mse_loss(seen, x) + 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).mean()


@foreign(VECTORS, VECTORS, loss=evidence_bound, spectrum={"output": 0})
def variational_autoencoder() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = m.encode(x).chunk(2, 1)
        return m.decode(mean + torch.exp(log_variance / 2) * torch.ones_like(mean)), mean, log_variance
    return Of(run, encode=nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6)),
              decode=nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 8)))


class Spike(torch.autograd.Function):
    """A step forwards, the slope of a fast sigmoid backwards (Zenke & Ganguli 2018)."""

    @staticmethod
    def forward(ctx, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, error: Tensor) -> Tensor:
        v, = ctx.saved_tensors
        return error / (1 + 10 * v.abs()) ** 2


@foreign(SERIES, Y)
def spiking() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        voltage, total = torch.zeros(len(x), 10), 0
        for t in range(x.shape[1]):
            spikes = Spike.apply(voltage - 1)
            voltage = 0.9 * voltage * (1 - spikes.detach()) + m.current(x[:, t])
            total = total + m.read(spikes)
        return total
    return Of(run, current=nn.Linear(8, 10), read=nn.Linear(10, CLASSES))


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w: Tensor) -> Tensor:
        return torch.round(w * 16) / 16

    @staticmethod
    def backward(ctx, error: Tensor) -> Tensor:
        return error


@foreign(VECTORS, Y)
def quantisation_aware() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        for layer in m.layers[:-1]:
            x = torch.relu(F.linear(x, Rounded.apply(layer.weight), layer.bias))
        return m.layers[-1](x)
    return Of(run, layers=nn.ModuleList([nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, CLASSES)]))


@foreign(VECTORS, Y)
def checkpointed() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        for block in m.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return m.head(x)
    return Of(run, head=nn.Linear(8, CLASSES),
              blocks=nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(4)))


@foreign(VECTORS, Y)
def weight_normed() -> nn.Module:
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(nn.Linear(8, 12)), nn.Tanh(), norm(nn.Linear(12, 12)), nn.Tanh(), nn.Linear(12, CLASSES))


@foreign(VECTORS, Y)
def spectrally_normed() -> nn.Module:
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Linear(8, 12)), nn.Tanh(), nn.Linear(12, CLASSES)).eval()


@foreign(VECTORS, Y, jacobian=False)
def mixture_of_experts() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        weight, chosen = torch.softmax(m.gate(x), 1).max(1)
        out = torch.zeros(len(x), CLASSES)
        for i, expert in enumerate(m.experts):
            of = (chosen == i).nonzero().flatten()
            out[of] = out[of] + weight[of, None] * expert(x[of])
        return out
    return Of(run, gate=nn.Linear(8, 3), experts=nn.ModuleList(nn.Linear(8, CLASSES) for _ in range(3)))


@foreign(IMAGES, Y)
def squeeze_and_excitation() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = torch.relu(m.conv(x))
        gate = torch.sigmoid(m.up(torch.relu(m.down(h.mean((2, 3))))))
        return m.head((h * gate[..., None, None]).mean((2, 3)))
    return Of(run, conv=nn.Conv2d(3, 8, 3, 2), down=nn.Linear(8, 4), up=nn.Linear(4, 8), head=nn.Linear(8, CLASSES))


@foreign(VECTORS, Y)
def hypernetwork() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        weight = m.weights(m.code).view(10, 8)
        return m.head(torch.tanh(x @ weight.T))
    model = Of(run, weights=nn.Linear(4, 80), head=nn.Linear(10, CLASSES))
    model.code = nn.Parameter(torch.randn(4))
    return model


@foreign(numbers(SAMPLES, 9, 3), Y)
def point_cloud() -> nn.Module:
    """PointNet: every point by itself, then the largest (Qi et al. 2017)."""
    return Of(lambda m, x: m.head(m.each(x).amax(1)), head=nn.Linear(16, CLASSES),
              each=nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 16)))


@foreign(labels(SAMPLES, 3, classes=9), Y, spectrum={"start": "embed"})
def bag_of_words() -> nn.Module:
    return Of(lambda m, ids: m.head(m.embed(ids)), embed=nn.EmbeddingBag(9, 8), head=nn.Linear(8, CLASSES))


@foreign(IMAGES, Y)
def dense_net() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        for layer in m.layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return m.head(x.mean((2, 3)))
    return Of(run, layers=nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(4)),
              head=nn.Linear(19, CLASSES))


@foreign(SERIES, Y)
def rotary_attention() -> nn.Module:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).chunk(3, -1)
        angle = torch.arange(x.shape[1]).float()[:, None] / 100 ** (torch.arange(4).float() / 4)
        turn = lambda h: torch.cat([h[..., :4] * angle.cos() - h[..., 4:] * angle.sin(),   # noqa: E731
                                    h[..., :4] * angle.sin() + h[..., 4:] * angle.cos()], -1)
        scores = turn(q) @ turn(k).transpose(1, 2) / math.sqrt(8)
        return m.head((torch.softmax(scores, -1) @ v).mean(1))
    return Of(run, qkv=nn.Linear(8, 24), head=nn.Linear(8, CLASSES))
