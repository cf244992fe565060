"""The environment with tools: `python` and `shell`, each call a program in the sandbox.

Both see the episode's working folder and may change it (rollout/tool_folder.py). Nothing else lives from call to call:
neither variables nor processes, so that a call is judged, limited and repeated by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from rollout.environment import Observation, Turn, answered
from rollout.tool_calls import END_CALL, ToolCall, find_call, result, tool_words
from rollout.tool_folder import Call, Files, FolderLimits, call_program, outcome
from sandbox import Execution, ProgramPool, Verdict

TOOLS = ("python", "shell")

_SAYS = {
    Verdict.TLE: "time limit",
    Verdict.MLE: "memory limit",
    Verdict.OLE: "too much output",
}
NO_CALL = "no such tool"
"""Verdict of a call that names none of the tools."""


class ToolEnvironment:
    """See Environment. The memory of an episode is its folder, {"files": {path: base64}}.

    Args:
        pool: runs the calls; it belongs to whoever made it. Its limits are those of every call.
        tools: names among TOOLS.
        folder: what the working folder may hold.
    """

    def __init__(self, pool: ProgramPool, tools: Sequence[str] = TOOLS, folder: FolderLimits | None = None) -> None:
        self._pool = pool
        self._tools = tuple(tools)
        self._folder = folder or FolderLimits(64 << 10)

    @property
    def words(self) -> tuple[str, ...]:
        """The marks of calls and results."""
        return tool_words(self._tools)

    @property
    def stop_words(self) -> tuple[str, ...]:
        """The end of a call."""
        return (END_CALL,)

    def observe(self, turn: Turn) -> Future[Observation | None]:
        """Run the call that ends the turn, if one does."""
        call = find_call(turn.text)
        if call is None:
            return answered(None)
        files: Files = turn.memory["files"] if turn.memory else {}
        if call.tool not in self._tools:
            return answered(self._refusal(call, files))
        program = call_program(call.tool, call.source, files, self._pool.limits, self._folder)
        execution = self._pool.submit(program.program, program.limits)
        return _Answer(execution, lambda came: self._shown(came, call, program, files))

    def close(self) -> None:
        """Nothing of its own: see `pool`."""

    def _refusal(self, call: ToolCall, files: Files) -> Observation:
        said = f"there is no tool {call.tool!r}" if call.tool else f"{END_CALL} ends no call"
        shown = result(f"{said}; the tools are {', '.join(self._tools)}\n")
        return dataclasses.replace(
            shown, memory={"files": files}, tool=call.tool or "?", verdict=NO_CALL, is_error=True, note=said
        )

    def _shown(self, execution: Execution, call: ToolCall, program: Call, files: Files) -> Observation:
        if execution.verdict is Verdict.SE:
            said = execution.stderr.decode(errors="replace").strip()
            return Observation(system_error=f"the tool {call.tool} could not be run: {said}")
        came = outcome(program, execution, files, self._folder)
        output = came.output.decode(errors="replace")
        errors = execution.stderr.decode(errors="replace")
        ending = _SAYS.get(execution.verdict, f"exit {execution.exit_code}" if execution.exit_code else "")
        if execution.signal is not None and not ending:
            ending = f"signal {execution.signal}"
        lines = [output, errors, *(f"[{line}]\n" for line in (came.note, ending) if line)]
        text = "".join(line if not line or line.endswith("\n") else line + "\n" for line in lines)
        return dataclasses.replace(
            result(text),
            memory={"files": dict(came.files)},
            tool=call.tool,
            verdict=execution.verdict.value,
            is_error=execution.verdict is not Verdict.OK,
            note=came.note or ending,
        )


class _Answer(Future[Observation | None]):
    """What an execution comes to. Cancelling it ends the program."""

    def __init__(self, execution: Future[Execution], shown: Callable[[Execution], Observation]) -> None:
        super().__init__()
        self._execution = execution
        self._make = shown
        execution.add_done_callback(self._finish)

    def cancel(self) -> bool:
        self._execution.cancel()
        return super().cancel()

    def _finish(self, execution: Future[Execution]) -> None:
        if not self.set_running_or_notify_cancel():
            return
        try:
            shown = self._make(execution.result())
        except BaseException as error:  # the caller's to read, as with any future
            self.set_exception(error)
        else:
            self.set_result(shown)
