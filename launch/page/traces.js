// Trajectories as the page uses them: a record of report_traces.py, joined with its run's tables and streams.

class Trace {
  #text = null;
  #haystack = null;

  constructor(record, run, place, first) {
    Object.assign(this, { ...record, run, place, first });
    [this.promptId, this.promptText] = run.prompts[record.prompt];
  }

  get key() { return `${this.step}/${this.group}.${this.member}`; }
  get text() { return (this.#text ??= this.given ?? this.tokens().join("")); }
  get isCut() { return CUT_OFF.includes(this.stop_reason); }
  get turns() { return 1 + this.observations.filter(({ start, stop }) => stop > start).length; }
  get haystack() {
    return (this.#haystack ??= [this.promptId, this.promptText, this.text, this.note].join("\n").toLowerCase());
  }

  // One token with all its numbers; `logp` is null for what the policy did not choose.
  token(i) {
    const { vocabulary, streams } = this.run;
    const [id, text] = vocabulary[streams.token(this.first + i)];
    const logp = streams.logp(this.first + i);
    const ratio = streams.ratio(this.first + i);
    return { id, text, logp, ratio, learnt: ratio == null || logp == null ? null : logp + Math.log(ratio),
      advantage: logp == null ? null : this.advantage, version: logp == null ? null : this.versionAt(i) };
  }

  tokens(from = 0, upto = this.length) {
    const { vocabulary, streams } = this.run;
    const texts = [];
    for (let i = from; i < upto; i++) texts.push(vocabulary[streams.token(this.first + i)][1]);
    return texts;
  }

  // Which policy sampled a token: `versions` has the first token of each change.
  versionAt(i) {
    let version = this.version;
    for (const [first, changed] of this.versions) {
      if (first > i) break;
      version = changed;
    }
    return version;
  }

  // Versions between the policy that sampled and the weights at the start of the step, which learnt from it.
  get age() { return this.version < 0 ? 0 : this.step - 1 - this.version; }
}

const CUT_OFF = ["length", "turns", "time"]; // a budget ended them, as StopReason.is_truncated

function tracesOf(run) {
  let first = 0;
  return run.traces.map(({ text, ...record }, place) => {
    const trace = new Trace({ ...record, given: text }, run, place, first);
    first += record.length;
    return trace;
  });
}

const siblingsOf = (trace) => trace.run.read.filter((other) => other.step === trace.step && other.group === trace.group);

// The same prompt elsewhere: in other runs, or in this one at other steps.
const samePrompt = (trace, isWanted) =>
  RUNS.flatMap((run) => run.read).filter((other) =>
    other.promptText === trace.promptText && other.task === trace.task && isWanted(other));
