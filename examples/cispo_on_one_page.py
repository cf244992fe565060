"""CISPO on one page: reinforcement learning of a small policy on a task whose answers can be checked, in plain torch.

    python examples/cispo_on_one_page.py          # about a minute on one CPU core; needs torch and nothing else

The task: add two digits and give both digits of the sum, e.g. 7 + 8 = 15. The policy sees the two digits and writes two
more. Nobody shows it an answer. It guesses, a verifier says right or wrong, and CISPO makes the right guesses likelier:

1. **Sample groups.** For each prompt the policy writes G answers. The log-probability of each token is kept: it is that
   of the *behaviour* policy, the one that sampled.
2. **Reward** each answer by checking it. Here a share of the points is paid for each right digit.
3. **Advantage**: how much better an answer is than the others of its group, in standard deviations. No value network is
   needed, since the group itself is the baseline. A group whose answers are all equally good says nothing: advantage 0.
4. **Update**, several times on the same samples. After the first update the policy is no longer the one that sampled,
   which the importance ratio r = p(token) / p_behaviour(token) makes up for.

What PPO does with r, and what CISPO does instead: PPO *drops* a token whose ratio has left the clip range, for its
gradient becomes zero. The tokens that lose out are the rare ones that a chain of thought turns on ("wait", "however"),
whose ratio moves most. CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5) clips the *weight* and keeps the gradient:

    loss = - mean of  sg(min(r, cap)) * advantage * log p(token)         sg: stop-gradient

It is REINFORCE with an importance weight that cannot explode. `cispo_loss` below is that line. The real thing, with
packed rows, masks, other aggregations and several machines, is in cispo/loss.py, cispo/advantage.py and
cispo/trainer.py; a test holds this page to the same numbers and gradients.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Shapes: P prompts of a step, G answers to each, B = P * G sequences, T tokens written, V vocabulary, D width.
DIGITS = 10
ANSWER_TOKENS = 2


@dataclass(frozen=True)
class Settings:
    """What a run is made with."""

    steps: int = 120
    prompts: int = 64
    group_size: int = 16
    updates_per_step: int = 4  # of which only the first is on-policy
    ratio_cap: float = 3.0  # the ratio itself (1 + epsilon); MiniMax-M1 sets no lower bound
    lr: float = 2e-3
    seed: int = 1


class Policy(nn.Module):
    """A network that reads two digits and what it has written so far, and gives logits over the next digit."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.prompt = nn.Embedding(DIGITS * DIGITS, width)
        self.written = nn.Embedding(DIGITS + 1, width)  # one token more: nothing written yet
        self.layers = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, DIGITS))

    def forward(self, prompt_B2: Tensor, written_Bt: Tensor) -> Tensor:
        """Logits [B, V] of the token after `written_Bt` (t of them)."""
        pair_B = DIGITS * prompt_B2[:, 0] + prompt_B2[:, 1]
        last_B = written_Bt[:, -1] if written_Bt.shape[1] else torch.full_like(pair_B, DIGITS)
        return self.layers(torch.cat([self.prompt(pair_B), self.written(last_B)], dim=1))


def sample(policy: Policy, prompt_B2: Tensor, *, greedy: bool = False) -> tuple[Tensor, Tensor]:
    """Answers [B, T], and the behaviour log-probability of each of their tokens [B, T]."""
    answer_BT, logps = prompt_B2.new_empty(len(prompt_B2), 0), []
    with torch.no_grad():
        for _ in range(ANSWER_TOKENS):
            logp_BV = F.log_softmax(policy(prompt_B2, answer_BT), dim=-1)
            token_B1 = logp_BV.argmax(-1, keepdim=True) if greedy else torch.multinomial(logp_BV.exp(), 1)
            logps.append(logp_BV.gather(1, token_B1))
            answer_BT = torch.cat([answer_BT, token_B1], dim=1)
    return answer_BT, torch.cat(logps, dim=1)


def token_logp(policy: Policy, prompt_B2: Tensor, answer_BT: Tensor) -> Tensor:
    """Log-probability [B, T] of given answers under the present policy, with a gradient."""
    logps = []
    for t in range(ANSWER_TOKENS):
        logp_BV = F.log_softmax(policy(prompt_B2, answer_BT[:, :t]), dim=-1)
        logps.append(logp_BV.gather(1, answer_BT[:, t : t + 1]))
    return torch.cat(logps, dim=1)


def rewards(prompt_B2: Tensor, answer_BT: Tensor) -> Tensor:
    """The verifier: the share of right digits [B]; 1 is a right answer."""
    total_B = prompt_B2.sum(dim=1)
    right_BT = torch.stack([total_B // 10, total_B % 10], dim=1)
    return (answer_BT == right_BT).float().mean(dim=1)


def group_advantages(rewards_PG: Tensor) -> Tensor:
    """(reward - mean of the group) / standard deviation of the group; 0 where all rewards of a group are equal."""
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    spread_P1 = rewards_PG.std(dim=1, keepdim=True, correction=0)
    return torch.where(spread_P1 > 1e-6, centred_PG / spread_P1.clamp(min=1e-6), 0.0)


def cispo_loss(logp_BT: Tensor, behaviour_logp_BT: Tensor, advantage_B: Tensor, ratio_cap: float) -> Tensor:
    """The objective of equation 4, as a mean over all tokens.

    `detach` is the stop-gradient: the ratio only weighs, and the gradient flows through log p alone. So a token beyond
    the cap still learns, with weight `ratio_cap`, where PPO would leave it out.
    """
    ratio_BT = (logp_BT - behaviour_logp_BT).exp()
    weight_BT = ratio_BT.clamp(max=ratio_cap).detach()
    return -(weight_BT * advantage_B[:, None] * logp_BT).mean()


def train(settings: Settings) -> list[float]:
    """Train from random weights; the greedy accuracy over all 100 sums, before the first step and after each tenth."""
    torch.manual_seed(settings.seed)
    policy = Policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.lr)
    accuracies = [accuracy(policy)]
    print(f"step   0  accuracy {accuracies[0]:.2f}")
    for step in range(1, settings.steps + 1):
        # 1. Sample: G answers to each prompt, by the weights of this moment.
        prompt_P2 = torch.randint(DIGITS, (settings.prompts, 2))
        prompt_B2 = prompt_P2.repeat_interleave(settings.group_size, dim=0)
        answer_BT, behaviour_logp_BT = sample(policy, prompt_B2)

        # 2. Reward, and 3. advantage within each group.
        reward_B = rewards(prompt_B2, answer_BT)
        advantage_B = group_advantages(reward_B.view(settings.prompts, settings.group_size)).flatten()

        # 4. Update: the groups are dealt out over the updates, whole, so the later ones learn from ever older samples.
        largest_ratio = 0.0
        for b in torch.arange(len(prompt_B2)).chunk(settings.updates_per_step):
            logp_BT = token_logp(policy, prompt_B2[b], answer_BT[b])
            loss = cispo_loss(logp_BT, behaviour_logp_BT[b], advantage_B[b], settings.ratio_cap)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            largest_ratio = max(largest_ratio, (logp_BT.detach() - behaviour_logp_BT[b]).max().exp().item())

        if step % 10 == 0:
            accuracies.append(accuracy(policy))
            print(
                f"step {step:3}  accuracy {accuracies[-1]:.2f}  reward {reward_B.mean():.3f}  "
                f"largest ratio {largest_ratio:.2f}"
            )
    return accuracies


def accuracy(policy: Policy) -> float:
    """The share of all 100 sums that the likeliest answer gets right."""
    prompt_B2 = torch.cartesian_prod(torch.arange(DIGITS), torch.arange(DIGITS))
    answer_BT, _ = sample(policy, prompt_B2, greedy=True)
    return (rewards(prompt_B2, answer_BT) == 1).float().mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    begin = time.perf_counter()
    train(Settings(**vars(parser.parse_args())))
    print(f"{time.perf_counter() - begin:.0f} seconds")
