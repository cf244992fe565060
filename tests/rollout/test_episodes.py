"""Episodes over a scripted engine and environment: turns, masks, budgets, order, and nothing tokenised twice."""

import pickle
import time
from concurrent.futures import Future

import numpy as np
import pytest

from cispo.errors import EpisodeError, InvalidRequest
from cispo.types import Prompt, Score, StopReason, Verdict
from rollout.engine import Completion
from rollout.environment import Observation, ObservationEncoder, answered
from rollout.environments import EpisodeConfig
from rollout.episode import response_text_ids
from rollout.episodes import Episodes, Setting
from rollout.sampling import Sampling
from rollout.worker import GroupRequest, RolloutWorker

END = 9
PROMPT = Prompt("p0", "calculate", "x", (1, 2, 3), "42")


class Engine:
    """Writes what the script says: by (member, turn) the token ids; END ends a turn, anything else is the limit."""

    def __init__(self, script, *, steps_of=None, refuses=()):
        self.script, self.steps_of, self.refuses = script, steps_of or {}, refuses
        self.queue, self.submitted, self.cancelled = [], [], []

    def submit(self, requests):
        for request in requests:
            if request.id in self.refuses:
                raise InvalidRequest(f"{request.id} is refused")
            self.submitted.append(request)
            for place in range(request.num_samples):
                name = (place, 0) if "/" not in request.id else tuple(map(int, request.id.split("/")[1:]))
                self.queue.append([self.steps_of.get(name, 1), request, place, name])

    @property
    def has_work(self):
        return bool(self.queue)

    def step(self):
        for entry in self.queue:
            entry[0] -= 1
        ready = [entry for entry in self.queue if entry[0] <= 0]
        self.queue = [entry for entry in self.queue if entry[0] > 0]
        return [self.completion(request, place, name) for _, request, place, name in ready]

    def completion(self, request, place, name):
        ids = self.script[name][: request.sampling.max_new_tokens]
        stops = ids[-1] == END
        return Completion(
            request_id=request.id,
            member=place,
            token_ids=np.array(ids),
            logp=-np.arange(1.0, len(ids) + 1, dtype=np.float32) - 10 * name[1],
            version=np.full(len(ids), 4 + name[1]),
            action_mask=np.full(len(ids), True),
            stop_reason=StopReason.STOP if stops else StopReason.LENGTH,
            state={"after": name} if stops else None,
        )

    def cancel(self, ids):
        self.cancelled += ids


class Environment:
    """Answers by (text of the turn); waits for `release` where the text begins with a w."""

    words = stop_words = ()

    def __init__(self, answers):
        self.answers, self.turns, self.waiting, self.closed = answers, [], {}, False

    def observe(self, turn):
        self.turns.append(turn)
        answer = self.answers[turn.text]
        if isinstance(answer, Exception):
            raise answer
        if not turn.text.startswith("w"):
            return answered(answer)
        self.waiting[turn.text] = future = Future()
        return future

    def release(self, text):
        self.waiting[text].set_result(self.answers[text])

    def close(self):
        self.closed = True


class Tokenizer:
    """A letter is 100 and its place; everything that is encoded is remembered."""

    def __init__(self):
        self.encoded = []

    def encode(self, text):
        self.encoded.append(text)
        return [100 + ord(letter) - ord("a") for letter in text]

    encode_untrusted = encode


def decode(ids):
    """Ids from 20 on as letters from a on; END is not shown."""
    return "".join(chr(ord("a") + i - 20) for i in ids if i != END)


def text(letters):
    return [20 + ord(letter) - ord("a") for letter in letters] + [END]


def setting(environment, *, lockstep=False, tokenizer=None, **config):
    config = EpisodeConfig(**{"environment": "tools", "max_tokens": 100, **config})
    return Setting(environment, config, ObservationEncoder(tokenizer or Tokenizer()), (END,), lockstep)


def episodes_of(engine, environment, clock=time.monotonic, num_samples=1, **config):
    episodes = Episodes(engine, decode, setting(environment, **config), clock=clock)
    begin(episodes, num_samples=num_samples)
    return episodes


def begin(episodes, name="0", num_samples=1, max_new_tokens=50):
    from rollout.engine import Request

    sampling = Sampling(max_new_tokens=max_new_tokens, stop_token_ids=(END,))
    episodes.begin(Request(name, PROMPT.token_ids, num_samples, 7, sampling), PROMPT)


def play(episodes, engine, rounds=30):
    """Step and go on until nothing is left to do."""
    ended = []
    for _ in range(rounds):
        if engine.has_work:
            ended += [end for turn in engine.step() for end in episodes.after_turn(turn)]
        ended += episodes.go_on()
    return ended


def test_ids_masks_and_log_probabilities_of_three_turns():
    environment = Environment({"a": Observation("xy"), "bc": Observation("z"), "d": None})
    engine = Engine({(0, 0): text("a"), (0, 1): text("bc"), (0, 2): text("d")})
    tokenizer = Tokenizer()
    (end,) = play(episodes_of(engine, environment, tokenizer=tokenizer), engine)
    trajectory = end.trajectory
    assert trajectory.token_ids_T.tolist() == [1, 2, 3, 20, 9, 123, 124, 21, 22, 9, 125, 23, 9]
    assert trajectory.action_mask_T.tolist() == [c == "a" for c in "pppaaooaaaoaa"]
    assert trajectory.behaviour_logp_T.tolist() == [0, 0, 0, -1, -2, 0, 0, -11, -12, -13, 0, -21, -22]
    assert trajectory.version_T.tolist() == [-1, -1, -1, 4, 4, -1, -1, 5, 5, 5, -1, 6, 6]
    assert [(span.start, span.stop) for span in trajectory.observations] == [(5, 7), (10, 11)]
    assert (trajectory.stop_reason, trajectory.num_turns, trajectory.num_actions) == (StopReason.STOP, 3, 7)
    assert "".join(tokenizer.encoded) == "xyz", "observations alone are encoded, each once"
    assert decode(response_text_ids(trajectory, PROMPT)) == "abcd", "what a tool said is not the policy's answer"


def test_a_turn_goes_on_from_the_state_and_with_a_seed_of_its_own():
    environment = Environment({"a": Observation("x"), "b": Observation("y"), "c": None, "d": None})
    engine = Engine({(0, 0): text("a"), (1, 0): text("b"), (0, 1): text("c"), (1, 1): text("d")})
    assert len(play(episodes_of(engine, environment, num_samples=2), engine)) == 2
    first, *later = engine.submitted
    assert first.keep_state_after == (END,) and first.state is None
    assert [request.state for request in later] == [{"after": (0, 0)}, {"after": (1, 0)}]
    assert [list(request.token_ids) for request in later] == [[1, 2, 3, 20, 9, 123], [1, 2, 3, 21, 9, 124]]
    assert len({first.seed, *(request.seed for request in later)}) == 3


def test_memory_comes_back_and_turns_are_numbered():
    environment = Environment({"a": Observation("x", memory={"n": 1}), "b": Observation("y", memory=2), "c": None})
    engine = Engine({(0, 0): text("a"), (0, 1): text("b"), (0, 2): text("c")})
    play(episodes_of(engine, environment), engine)
    assert [(turn.number, turn.memory) for turn in environment.turns] == [(0, None), (1, {"n": 1}), (2, 2)]
    assert len({turn.seed for turn in environment.turns}) == 3


def always(observation="x"):
    environment = Environment({"a": Observation(observation)})
    return environment, Engine({(0, turn): text("a") for turn in range(50)})


@pytest.mark.parametrize(
    ("config", "reason", "num_tokens", "num_turns"),
    [
        ({"max_turns": 3}, StopReason.TURNS, 3 + 3 * 2 + 2, 3),
        ({"max_turns": 1}, StopReason.TURNS, 3 + 2, 1),
        # A turn takes 2 tokens and an answer 1: after 3 turns 11 are there, a fourth may have one more and is cut.
        ({"max_turns": 40, "max_tokens": 13}, StopReason.LENGTH, 13, 4),
        ({"max_turns": 40, "max_tokens": 11}, StopReason.LENGTH, 3 + 3 * 2 + 2, 3),
    ],
)
def test_budgets_of_turns_and_tokens(config, reason, num_tokens, num_turns):
    environment, engine = always()
    (end,) = play(episodes_of(engine, environment, **config), engine, rounds=100)
    assert end.trajectory.stop_reason is reason and reason.is_truncated
    assert (len(end.trajectory.token_ids_T), end.trajectory.num_turns) == (num_tokens, num_turns)
    assert len(end.trajectory.token_ids_T) <= config.get("max_tokens", 100)


def test_the_window_counts_the_tokens_of_all_turns_together():
    environment, engine = always()
    episodes = Episodes(engine, decode, setting(environment, max_turns=40))
    begin(episodes, max_new_tokens=5)
    (end,) = play(episodes, engine)
    assert (end.trajectory.num_actions, end.trajectory.stop_reason) == (5, StopReason.LENGTH)
    assert [request.sampling.max_new_tokens for request in engine.submitted] == [5, 3, 1]


def test_a_prompt_without_room_is_refused_before_it_starts():
    episodes = Episodes(Engine({}), decode, setting(Environment({}), max_tokens=3))
    with pytest.raises(InvalidRequest, match="3 tokens and a whole episode 3"):
        begin(episodes)


def test_the_time_budget_ends_a_call_that_hangs_and_a_turn_that_comes_late():
    now = [0.0]
    environment = Environment({"w": Observation("x"), "a": Observation("x"), "b": Observation("x")})
    engine = Engine({(0, 0): text("w"), (1, 0): text("a"), (1, 1): text("b")}, steps_of={(1, 1): 5})
    episodes = episodes_of(engine, environment, clock=lambda: now[0], num_samples=2, seconds=10.0)
    assert play(episodes, engine, rounds=1) == [] and episodes.next_deadline == 10.0
    now[0] = 10.0
    (hung,) = episodes.go_on()
    assert (hung.member, hung.trajectory.stop_reason) == (0, StopReason.TIME)
    assert environment.waiting["w"].cancelled()
    (late,) = play(episodes, engine, rounds=6)
    assert (late.member, late.trajectory.stop_reason, late.trajectory.num_turns) == (1, StopReason.TIME, 2)
    assert StopReason.TIME.is_truncated


def test_without_lockstep_an_episode_goes_on_as_soon_as_its_answer_is_there():
    environment = Environment({"w": Observation("x"), "v": Observation("y"), "b": None})
    script = {(0, 0): text("w"), (1, 0): text("v"), (0, 1): text("b"), (1, 1): text("b")}
    engine = Engine(script)
    episodes = episodes_of(engine, environment, num_samples=2)
    (end,) = play(episodes, engine)
    assert end.member == 1, "the other waits for its tool, and this one did not wait for it"
    environment.release("w")
    assert [end.member for end in play(episodes, engine)] == [0]


@pytest.mark.parametrize("order", [["wa", "wb", "wc"], ["wc", "wa", "wb"]])
def test_in_lockstep_the_order_of_the_answers_is_nothing_to_the_engine(order):
    answers = {"wa": Observation("x"), "wb": Observation("y"), "wc": Observation("z"), "e": None}
    script = {(0, 0): text("wa"), (1, 0): text("wb"), (2, 0): text("wc"), (3, 0): text("e")}
    script |= {(member, 1): text("e") for member in range(3)}
    environment, engine = Environment(answers), Engine(script, steps_of={(3, 0): 4})
    episodes = episodes_of(engine, environment, num_samples=4, lockstep=True)
    assert play(episodes, engine, rounds=2) == []
    for waiting in order[:2]:
        environment.release(waiting)
        assert episodes.go_on() == [] and len(engine.submitted) == 1, "not all answers are there"
    environment.release(order[2])
    assert episodes.go_on() == [] and len(engine.submitted) == 1, "the engine is still at work"
    ended = play(episodes, engine)
    assert [request.id for request in engine.submitted] == ["0", "0/0/1", "0/1/1", "0/2/1"]
    assert sorted(end.member for end in ended) == [0, 1, 2, 3]


def test_an_environment_that_ends_the_episode():
    environment = Environment({"a": Observation("well done", done=True, verdict="right")})
    engine = Engine({(0, 0): text("a")})
    (end,) = play(episodes_of(engine, environment), engine)
    assert end.trajectory.token_ids_T.tolist() == [1, 2, 3, 20, 9] and end.trajectory.stop_reason is StopReason.STOP
    (span,) = end.trajectory.observations
    assert (span.start, span.stop, span.verdict, end.trajectory.num_turns) == (5, 5, "right", 1)


def test_what_says_nothing_about_the_policy_fails_the_episode():
    environment = Environment({"a": Observation(system_error="no sandbox"), "b": Observation("x")})
    engine = Engine({(0, 0): text("a"), (1, 0): text("b"), (1, 1): text("b")}, refuses=["0/1/1"])
    ended = play(episodes_of(engine, environment, num_samples=2), engine)
    assert [(end.member, end.trajectory, end.failed) for end in ended] == [
        (0, None, "no sandbox"),
        (1, None, "0/1/1 is refused"),
    ]


def test_an_environment_that_raises_ends_the_run_with_a_sentence():
    broken = Future()
    broken.set_exception(KeyError("guess"))
    environment = Environment({"a": ValueError("oh"), "wb": None})
    engine = Engine({(0, 0): text("a")})
    with pytest.raises(EpisodeError, match="raised ValueError on prompt p0: oh; it has to answer"):
        play(episodes_of(engine, environment), engine)
    engine = Engine({(0, 0): text("wb")})
    episodes = episodes_of(engine, environment)
    play(episodes, engine, rounds=1)
    environment.waiting["wb"].set_exception(KeyError("guess"))
    with pytest.raises(EpisodeError, match="KeyError"):
        episodes.go_on()


def test_a_forgotten_group_leaves_nothing_behind():
    environment = Environment({"w": Observation("x"), "a": Observation("x")})
    engine = Engine({(0, 0): text("w"), (1, 0): text("a"), (1, 1): text("a")}, steps_of={(1, 1): 9})
    episodes = episodes_of(engine, environment, num_samples=2)
    play(episodes, engine, rounds=1)
    episodes.forget("0")
    assert environment.waiting["w"].cancelled() and set(engine.cancelled) == {"0", "0/1/1"}
    assert play(episodes, engine) == [] and episodes.pending == []


def test_an_episode_goes_on_elsewhere_from_plain_data():
    answers = {
        "a": Observation("x", memory={"n": 1}),
        "wb": Observation("y", memory=2),
        "c": None,
        "d": Observation("z"),
    }
    script = {(0, 0): text("a"), (0, 1): text("c"), (1, 0): text("d"), (1, 1): text("wb"), (1, 2): text("c")}

    def released(episodes, engine, environment):
        ended = play(episodes, engine)
        environment.release("wb")
        return ended + play(episodes, engine)

    def members(ended):
        return {end.member: (end.trajectory.token_ids_T.tolist(), end.trajectory.observations) for end in ended}

    engine, environment = Engine(script), Environment(answers)
    wanted = members(released(episodes_of(engine, environment, num_samples=2), engine, environment))

    engine, environment = Engine(script, steps_of={(0, 1): 99}), Environment(answers)
    episodes = episodes_of(engine, environment, num_samples=2)
    assert play(episodes, engine, rounds=3) == []
    kept = pickle.loads(pickle.dumps(episodes.under_way("0")))
    assert [kept[member].waits_for_an_answer for member in (0, 1)] == [False, True]
    first, seeds = engine.submitted[0], {request.id: request.seed for request in engine.submitted}

    engine, environment = Engine(script), Environment(answers)
    elsewhere = Episodes(engine, decode, setting(environment))
    elsewhere.resume(first, PROMPT, kept, num_left=2)
    assert members(released(elsewhere, engine, environment)) == wanted
    assert engine.submitted[0].seed == seeds[engine.submitted[0].id], "the turn is sampled as it would have been"
    assert environment.turns[0].memory is None and environment.turns[0].text == "wb"


class Scorer:
    def __init__(self):
        self.texts = []

    def submit(self, prompt, trajectory, text):
        self.texts.append(text)
        future = Future()
        future.set_result(Score(1.0, True, {}, Verdict.CORRECT))
        return future

    def close(self):
        pass


def worker_of(script, answers, **config):
    environment, scorer, engine = Environment(answers), Scorer(), Engine(script)
    one = RolloutWorker(engine, scorer, decode, Sampling(stop_token_ids=(END,)), setting(environment, **config))
    one.submit([GroupRequest(0, PROMPT, 2, 7, 50)])
    return one, environment, scorer


def test_a_worker_scores_what_the_policy_wrote_in_all_turns():
    script = {(0, 0): text("a"), (0, 1): text("b"), (1, 0): text("b")}
    one, environment, scorer = worker_of(script, {"a": Observation("x"), "b": None})
    (group,) = one.advance(10.0).groups
    assert [trajectory.num_turns for trajectory in group.trajectories] == [2, 1]
    assert sorted(scorer.texts) == ["ab", "b"]
    one.close()
    assert environment.closed


def test_a_worker_waits_for_a_tool_and_reports_meanwhile():
    one, environment, _ = worker_of(
        {(0, 0): text("w"), (0, 1): text("b"), (1, 0): text("b")}, {"w": Observation("x"), "b": None}
    )
    assert one.advance(0.2).groups == ()
    environment.release("w")
    assert len(one.advance(10.0).groups) == 1


def test_a_worker_drops_a_group_whose_tool_could_not_be_run():
    script = {(0, 0): text("a"), (1, 0): text("w")}
    one, environment, _ = worker_of(script, {"a": Observation(system_error="no sandbox"), "w": Observation("x")})
    assert one.advance(10.0).failed == {0: "no sandbox"}
    assert environment.waiting["w"].cancelled()
