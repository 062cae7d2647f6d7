"""LEO: a latent code for each task, descended in latent space, then in weight space (Rusu et al. 2019).

    q(z|support) = N(mean, spread): encoder on each point, relation network over all ordered pairs, averaged (eq. 1-2)
    weights = N(mean(z), spread(z)): the decoder (eq. 3)
    z      <- z - latent_lr * grad mse(decode(z); support), the first `latent_steps` steps (eq. 4)
    weights <- weights - weight_lr * grad mse(weights; support), the rest
    meta-loss = mse(weights; query) + penalties (eq. 6-7), differentiated through all steps

For regression the whole weight vector is generated, from (x, y) pairs and a single code (section 4.1). Samples
come in through `noise`; with zeros, codes and weights are the means.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dataset import Points
from learner import Adaptation, GradientLearner, Network

SPREAD_START = -5.0  # initial log standard deviation of the weights: much noise at the start drowns the signal
LOG_SPREAD = (-10.0, 2.0)  # bounds on log standard deviations: exp of an unbounded output overflows early on


class LEO(GradientLearner):
    """Meta-parameters: encoder, relation network, decoder (flat vectors), log step sizes in z [Z] and weights [P].

    The step sizes are learned as logarithms, which keeps them positive. Without a bound on the norm of an inner gradient,
    the first decoded networks, which fit nothing yet, send z so far that training starts with NaN.
    """

    settings: ClassVar = (
        *GradientLearner.settings,
        "LEO_LATENT_DIM",
        "LEO_ENCODER_DIM",
        "LEO_RELATION_DIM",
        "LEO_DECODER_DIM",
        "LEO_LATENT_STEPS",
        "LEO_LATENT_LEARNING_RATE",
        "LEO_KL_WEIGHT",
        "LEO_ENCODER_PENALTY",
        "LEO_L2_WEIGHT",
        "LEO_ORTHOGONALITY",
    )
    defaults: ClassVar = {
        "EPOCHS": 48,  # with Adam; 16: three times the error on sinusoids
        "INNER_STEPS": 10,
        "INNER_LEARNING_RATE": 0.01,
        "INNER_GRADIENT_CLIP": 10.0,
        "CHECKPOINT_INTERVAL": 1000,  # its steps take longer
    }

    def __init__(self, config: Config, rng: np.random.Generator):
        super().__init__(config, rng)
        self.latent_dim, self.latent_steps = config.LEO_LATENT_DIM, config.LEO_LATENT_STEPS
        self.kl_weight, self.encoder_penalty = config.LEO_KL_WEIGHT, config.LEO_ENCODER_PENALTY  # beta, gamma of eq. 6
        self.l2_weight, self.orthogonality = config.LEO_L2_WEIGHT, config.LEO_ORTHOGONALITY  # lambda1, lambda2 of eq. 7
        encoder, relation, weights = config.LEO_ENCODER_DIM, config.LEO_RELATION_DIM, self.network.num_weights
        self.encoder_network = Network((config.INPUT_DIM + 1, encoder, encoder, encoder))
        self.relation_network = Network((2 * encoder, relation, relation, 2 * self.latent_dim))
        self.decoder_network = Network((self.latent_dim, config.LEO_DECODER_DIM, 2 * weights), torch.tanh)
        self.encoder = nn.Parameter(self.encoder_network.init(rng))
        self.relation = nn.Parameter(self.relation_network.init(rng))
        self.decoder = nn.Parameter(self._initial_decoder(rng))
        self.log_latent_lr = nn.Parameter(torch.full((self.latent_dim,), config.LEO_LATENT_LEARNING_RATE).log())
        self.log_weight_lr = nn.Parameter(torch.full((weights,), self.inner_lr).log())

    @classmethod
    def meta_parameters_per_weight(cls, config: Config) -> int:
        return 2 * (config.LEO_DECODER_DIM + 1)

    @classmethod
    def numbers_per_task(cls, config: Config, shots: int) -> int:
        return shots**2 * (2 * config.LEO_ENCODER_DIM + config.LEO_RELATION_DIM)  # all pairs of points

    @property
    def noise_dim(self) -> int:  # type: ignore[override]
        return self.latent_dim + self.network.num_weights

    def _initial_decoder(self, rng: np.random.Generator) -> Tensor:
        """A decoder whose first networks are ordinary ones: a usual initialisation as bias, plus a little of z."""
        decoder = self.decoder_network.init(rng)
        matrix, bias = self.decoder_network.layers(decoder)[-1]  # views
        matrix.mul_(0.1)
        bias[: self.network.num_weights] = self.network.init(rng)
        bias[self.network.num_weights :] = SPREAD_START
        return decoder

    def encode(self, support: Points) -> tuple[Tensor, Tensor]:
        """Mean and log spread [Z] of the code of a support set: x [K, D], y [K, 1]."""
        features = self.encoder_network(self.encoder, torch.cat([support.x, support.y], dim=1))  # [K, E]
        count, size = features.shape
        left = features[:, None, :].expand(count, count, size)
        right = features[None, :, :].expand(count, count, size)
        pairs = torch.cat([left, right], dim=2).view(count * count, 2 * size)  # [K*K, 2E]
        code = self.relation_network(self.relation, pairs).mean(0)  # [2Z]; no activation: a ReLU here collapses codes
        mean, log_spread = code.split(self.latent_dim)
        return mean, log_spread.clamp(*LOG_SPREAD)

    def hidden_matrices(self) -> list[Tensor]:
        """All but those that take points or give weights."""
        layers = self.encoder_network.layers(self.encoder)[1:] + self.relation_network.layers(self.relation)
        return [matrix for matrix, _ in layers + self.decoder_network.layers(self.decoder)[:-1]]

    def decode(self, z: Tensor, noise: Tensor) -> Tensor:
        """The network's weights [P] for a code `z` [Z], sampled with `noise` [P]."""
        output = self.decoder_network(self.decoder, z[None])[0]  # [2P]
        mean, log_spread = output.split(self.network.num_weights)
        return mean + log_spread.clamp(*LOG_SPREAD).exp() * noise

    def prior(self) -> Tensor:
        """The network of the code's prior mean, 0."""
        return self.decode(self.decoder.new_zeros(self.latent_dim), self.decoder.new_zeros(self.network.num_weights))

    def adapt(self, support: Points, noise: Tensor, steps: int | None = None) -> Adaptation:
        steps = self.steps if steps is None else steps
        latent_steps = min(steps, self.latent_steps)
        z_noise, weight_noise = noise.split([self.latent_dim, self.network.num_weights])
        loss = self.support_loss(support)
        mean, log_spread = self.encode(support)
        start = mean + log_spread.exp() * z_noise

        def latent_loss(z: Tensor) -> Tensor:
            return loss(self.decode(z, weight_noise))

        codes = self.descend(latent_loss, start, self.log_latent_lr.exp(), latent_steps)
        path = [self.decode(z, weight_noise) for z in codes]
        path += self.descend(loss, path[-1], self.log_weight_lr.exp(), steps - latent_steps)[1:]
        kl = 0.5 * (mean.square() + (2 * log_spread).exp() - 1 - 2 * log_spread).sum()  # analytic, in nats
        encoder_penalty = (codes[-1].detach() - start).square().sum()
        penalty = self.kl_weight * kl + self.encoder_penalty * encoder_penalty + self._generator_penalty()
        diagnostics = {"kl": kl, "latent_std": log_spread.exp().mean(), "encoder_penalty": encoder_penalty}
        return Adaptation(path, penalty, diagnostics, code=start)

    def _generator_penalty(self) -> Tensor:
        """lambda1 ||generator weights||^2 + lambda2 mean (C_d - I)^2, C_d the correlations of the decoder's rows (eq. 7)."""
        squares = self.encoder.square().sum() + self.relation.square().sum() + self.decoder.square().sum()
        rows = torch.nn.functional.normalize(self.decoder_network.layers(self.decoder)[-1][0], dim=1)  # [hidden, 2P]
        correlations = rows @ rows.T
        identity = torch.eye(len(rows), device=rows.device, dtype=rows.dtype)
        return self.l2_weight * squares + self.orthogonality * (correlations - identity).square().mean()
