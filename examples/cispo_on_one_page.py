"""CISPO on one page: the whole algorithm, on a toy that a CPU learns in about a minute. Needs torch and nothing else.

    python examples/cispo_on_one_page.py                   python examples/cispo_on_one_page.py --steps 50 --seed 1

The toy: three digits in, the same digits in order out, then an end token. The policy has never seen an answer; it
writes tokens at random, a verifier says how much of each answer is right, and that is all it ever hears.

One step, as in the MiniMax-M1 report (arXiv 2506.13585, equations 2 to 5):

    1. sample    a group of G answers to each of P prompts; keep each token's log-probability as it was sampled
    2. score     every answer with the verifier
    3. credit    an answer's advantage is its reward against its own group: no value network, no reference model
    4. update    several times on parts of the batch, so that from the second update on the policy is no longer the one
                 that sampled (off-policy). The importance ratio of each token says by how much, and CISPO clips it:

        loss = - mean over prompts of the mean over tokens of   sg(clip(ratio, 0, cap)) * advantage * log p(token)

sg is the stop-gradient: the clipped ratio is a weight, like the advantage. PPO and GRPO clip the objective instead, and
a token whose ratio leaves the band has no gradient there. Those are the rare tokens ("wait", "however") that become
likely first, and that reasoning hangs on. Here every token keeps its gradient; the cap bounds how much one can weigh.

The real thing is in cispo/: loss.py, advantage.py, packing.py, trainer.py. A test compares this page with it. It also
draws more prompts until enough groups are not flat, guards its updates, and samples on other machines.
"""

import argparse
import time

import torch
from torch import Tensor, nn

NUM_DIGITS = 6
END, SEPARATOR = NUM_DIGITS, NUM_DIGITS + 1  # the tokens after the digits
PROMPT_LENGTH, ANSWER_LENGTH = 4, 4  # three digits and the separator; three digits and the end
MAX_NEW_TOKENS = 6

PROMPTS_PER_STEP, GROUP_SIZE = 32, 16
UPDATES_PER_STEP = 4
RATIO_CAP = 3.0  # the largest weight itself, not an epsilon
LEARNING_RATE, MAX_GRAD_NORM = 2e-3, 1.0


class Policy(nn.Module):
    """Any autoregressive model will do: this one is a GRU."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_DIGITS + 2, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, NUM_DIGITS + 2)

    def forward(self, tokens_NT: Tensor) -> Tensor:
        """Log-probabilities [N, T, V] of what comes after each token."""
        return self.head(self.gru(self.embedding(tokens_NT))[0]).log_softmax(-1)


# --- the toy ----------------------------------------------------------------------------------------------------------


def make_prompts(number: int) -> Tensor:
    """[number, PROMPT_LENGTH]: digits and the separator."""
    return torch.cat([torch.randint(NUM_DIGITS, (number, 3)), torch.full((number, 1), SEPARATOR)], 1)


def right_answers(prompts_NT: Tensor) -> Tensor:
    """[N, ANSWER_LENGTH]: the digits in order and the end."""
    return torch.cat([prompts_NT[:, :3].sort(1).values, torch.full((len(prompts_NT), 1), END)], 1)


def verify(prompts_NT: Tensor, answers_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """[N] rewards: the share of tokens that are right, in [0, 1]; 1 only for the whole answer and nothing more."""
    right = (answers_NT[:, :ANSWER_LENGTH] == right_answers(prompts_NT)) & mask_NT[:, :ANSWER_LENGTH]
    return right.float().mean(1)


# --- 1. sample --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(policy: Policy, prompts_NT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Answers [N, MAX_NEW_TOKENS], the log-probability of each token, and a mask: tokens up to the end, it included."""
    tokens_NT, logps = prompts_NT, []
    for _ in range(MAX_NEW_TOKENS):
        logp_NV = policy(tokens_NT)[:, -1]  # temperature 1: the distribution sampled from is the one learnt
        token_N1 = torch.multinomial(logp_NV.exp(), 1)
        logps.append(logp_NV.gather(1, token_N1))
        tokens_NT = torch.cat([tokens_NT, token_N1], 1)
    answers_NT = tokens_NT[:, PROMPT_LENGTH:]
    ended_before_NT = (answers_NT == END).cumsum(1) - (answers_NT == END).long() > 0
    return answers_NT, torch.cat(logps, 1), ~ended_before_NT


# --- 3. credit --------------------------------------------------------------------------------------------------------


def group_advantages(rewards_PG: Tensor) -> Tensor:
    """[P, G]: rewards against their group, (R - mean) / std; zero where all are equal: nothing can be learnt there."""
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    std_P1 = rewards_PG.std(1, correction=0, keepdim=True)
    return torch.where(std_P1 > 1e-6, centred_PG / std_P1.clamp(min=1e-6), 0.0)


def token_weights(mask_PGT: Tensor) -> Tensor:
    """[P, G, T]: what each token counts: a sum over tokens is then the mean over prompts of the mean over their tokens.

    A mean over each answer would let a wrong answer dilute its blame by being long.
    """
    num_prompts, tokens_of_prompt_P = len(mask_PGT), mask_PGT.sum((1, 2))
    return mask_PGT / (num_prompts * tokens_of_prompt_P)[:, None, None]


# --- 4. update --------------------------------------------------------------------------------------------------------


def cispo_loss(logp: Tensor, behaviour_logp: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    """The objective; four tensors of one shape, an entry for each token."""
    ratio = (logp - behaviour_logp).exp()
    return -(weight * ratio.clamp(max=RATIO_CAP).detach() * advantage * logp).sum()


def train_step(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """One step: sample, score, credit, and a few updates, each on a part of the prompts."""
    prompts_NT = make_prompts(PROMPTS_PER_STEP).repeat_interleave(GROUP_SIZE, 0)
    answers_NT, behaviour_logp_NT, mask_NT = sample(policy, prompts_NT)
    rewards_N = verify(prompts_NT, answers_NT, mask_NT)
    advantages_PG = group_advantages(rewards_N.view(PROMPTS_PER_STEP, GROUP_SIZE))

    ratios = []
    for prompts in torch.arange(PROMPTS_PER_STEP).chunk(UPDATES_PER_STEP):
        rows = (prompts[:, None] * GROUP_SIZE + torch.arange(GROUP_SIZE)).flatten()  # whole groups stay together
        mask_nT = mask_NT[rows]
        weight_nT = token_weights(mask_nT.view(len(prompts), GROUP_SIZE, -1)).view_as(mask_nT)
        advantage_nT = advantages_PG[prompts].view(-1, 1).expand_as(mask_nT)

        tokens_nT = torch.cat([prompts_NT[rows], answers_NT[rows]], 1)
        logp_nTV = policy(tokens_nT)[:, PROMPT_LENGTH - 1 : -1]
        logp_nT = logp_nTV.gather(2, answers_NT[rows, :, None]).squeeze(2)
        loss = cispo_loss(logp_nT, behaviour_logp_NT[rows], advantage_nT, weight_nT)

        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        ratios.append((logp_nT.detach() - behaviour_logp_NT[rows]).exp()[mask_nT])
    ratio = torch.cat(ratios)
    return {
        "reward": rewards_N.mean().item(),
        "flat groups": (advantages_PG == 0).all(1).float().mean().item(),
        "largest ratio": ratio.max().item(),
        "capped": (ratio > RATIO_CAP).float().mean().item(),
    }


def accuracy(policy: Policy, number: int = 500) -> float:
    """The share of sampled answers that are right from the first token to the end."""
    prompts_NT = make_prompts(number)
    answers_NT, _, mask_NT = sample(policy, prompts_NT)
    return (verify(prompts_NT, answers_NT, mask_NT) == 1).float().mean().item()


def train(steps: int = 200, seed: int = 0) -> tuple[float, float]:
    """Accuracy before and after so many steps; prints one line every twenty."""
    torch.manual_seed(seed)
    policy = Policy()
    optimizer = torch.optim.AdamW(policy.parameters(), LEARNING_RATE, betas=(0.9, 0.95), eps=1e-15)
    before, begin = accuracy(policy), time.monotonic()
    print(f"before: accuracy {before:.3f}")
    for step in range(1, steps + 1):
        told = train_step(policy, optimizer)
        if step % 20 == 0 or step == steps:
            numbers = "   ".join(f"{name} {value:.3f}" for name, value in told.items())
            print(f"step {step:4d}   accuracy {accuracy(policy):.3f}   {numbers}   {time.monotonic() - begin:.0f} s")
    return before, accuracy(policy)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))
