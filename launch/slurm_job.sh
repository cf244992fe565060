# --- from here on every script of `cispo launch slurm` is the same; what differs is above ------------------------------
#
# Ray is started on every node of the job and waited for; then the driver trains on the first node. It is told to save
# and stop before the time limit (USR1) or when Slurm or a person says TERM, and the job goes back into the queue.
# A start that fails goes back, too, but only max_restarts times without a new checkpoint.

set +e +u +o pipefail                                  # whatever slurm.setup has set
say() { echo "cispo: $(date '+%F %T') $*"; }

start=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}          # this start of the job
logs=$run/launch/$start                                # its logs, and the address of Ray's head
mkdir -p "$logs" || { say "$logs cannot be made; nothing is tried again"; exit 1; }
job=$SLURM_JOB_ID                                      # of an array this task alone, and not all of them
if [[ -n $SLURM_ARRAY_JOB_ID ]]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_address=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
unset RAY_ADDRESS                                      # a cluster of somebody else
# Ray runs code for whoever reaches its ports and has the token; others work on these machines, too.
unset RAY_AUTH_TOKEN
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$logs/token
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
# A job that is submitted anew, by whatever way, has all its starts before it.
if ((${SLURM_RESTART_COUNT:-0} == 0)); then rm -f "$run/launch/starts" 2>/dev/null; fi
if [[ ! -s $RAY_AUTH_TOKEN_PATH ]]; then say "$RAY_AUTH_TOKEN_PATH cannot be written; nothing is tried again"; exit 1; fi

newest_checkpoint() {
    local step newest=none
    for folder in "$run"/checkpoints/step_*; do
        step=${folder##*_}
        if [[ -d $folder && ($newest == none || $step -gt $newest) ]]; then newest=$step; fi
    done
    echo "$newest"
}

# on NODE LOG COMMAND...: run it there, in the background. A LOG of - is the job's own. --overlap, because Ray and the driver share the first node, memory and GPUs too.
on() {
    local node=$1 log=$2 output=()
    shift 2
    if [[ $log != - ]]; then output=(--output="$log" --open-mode=append); fi
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "${output[@]}" "${step_options[@]}" "${container[@]}" "$@" &
}

is_running() { kill -0 "$1" 2>/dev/null; }

# end_all SIGNAL SECONDS PID...: end these processes; those that are there SECONDS later are killed.
end_all() {
    local signal=$1 deadline=$((SECONDS + $2)) pid
    shift 2
    for pid in "$@"; do kill -"$signal" "$pid" 2>/dev/null; done
    for pid in "$@"; do
        while is_running "$pid" && ((SECONDS < deadline)); do sleep 0.2; done
        kill -KILL "$pid" 2>/dev/null
    done
}

# --- signals -----------------------------------------------------------------------------------------------------------
# bash runs a trap between two commands; so nothing below waits in one command for longer than a second.
asked=                                                 # the signal that asked for a stop
asked_at=0
driver=
ask_to_stop() {
    if [[ -n $asked ]]; then return; fi
    asked=$1 asked_at=$SECONDS
    say "$1: the run is asked to save and to stop, and gets $((signal_seconds - spare_seconds)) s for it"
    if [[ -n $driver ]]; then kill -USR1 "$driver" 2>/dev/null; fi
}
trap 'ask_to_stop USR1' USR1
trap 'ask_to_stop TERM' TERM
if [[ -n $early ]]; then ask_to_stop "$early"; fi       # it came during slurm.setup

# --- Ray on every node -------------------------------------------------------------------------------------------------
ray_nodes=()
start_ray() {
    local node what=head
    for node in "${nodes[@]}"; do
        on "$node" "$logs/ray-$node.log" "$python" -m launch.ray_node "$what" "$logs" "$node" --host="$head_address" \
            "${ray_options[@]}"
        ray_nodes+=("$!")
        what=worker
    done
}

# The number of the first node whose Ray has ended; fails if all are there.
ended_node() {
    local number
    for number in "${!nodes[@]}"; do
        if ! is_running "${ray_nodes[$number]}"; then echo "$number" && return 0; fi
    done
    return 1
}

wait_for_nodes() {
    local waiter number deadline=$((SECONDS + start_seconds + 60))
    on "$head" "$logs/nodes.log" "$python" -m launch.ray_node wait "$logs" "${nodes[@]}" --seconds="$start_seconds"
    waiter=$!
    while is_running "$waiter"; do
        if number=$(ended_node); then
            say "node ${nodes[$number]} could not start Ray:"
            tail -n 5 "$logs/ray-${nodes[$number]}.log"
        elif ((SECONDS > deadline)); then
            say "the job waited $((start_seconds + 60)) s for its first node, $head, to say which nodes have joined"
        elif [[ -z $asked ]]; then
            sleep 0.5
            continue
        fi
        end_all TERM 5 "$waiter"
        return 1
    done
    wait "$waiter"
    local status=$?
    cat "$logs/nodes.log"
    return $status
}

# --- the driver --------------------------------------------------------------------------------------------------------
train() {
    local number told=
    local cluster=("cluster.address=$(<"$logs/address")" "cluster.num_nodes=${#nodes[@]}")
    if [[ -f $run/config.yaml ]]; then                 # it has begun before; without a checkpoint --resume begins it anew
        say "going on with $run from checkpoint $(newest_checkpoint)"
        on "$head" - "$python" -m launch.cli train --resume "$run" "${resume_overrides[@]}" "${cluster[@]}"
    else
        say "beginning $run"
        on "$head" - "$python" -m launch.cli train "${overrides[@]}" "${cluster[@]}"
    fi
    driver=$!
    if [[ -n $asked ]]; then kill -USR1 "$driver"; fi  # by a signal that came too early for it
    while is_running "$driver"; do
        if [[ -n $asked ]] && ((SECONDS > asked_at + signal_seconds - spare_seconds)); then
            say "the run did not save in $((signal_seconds - spare_seconds)) s (a step takes longer: raise" \
                "slurm.signal_seconds); it goes on from the checkpoint before"
            end_all TERM 5 "$driver"
        elif [[ -z $told ]] && number=$(ended_node); then
            told=yes
            say "node ${nodes[$number]} left Ray; the run goes on with the others if it can"
        fi
        sleep 0.5
    done
    wait "$driver"
}

# --- back into the queue, or the end -----------------------------------------------------------------------------------
# Sets count: how many starts in a row have ended at the same checkpoint, this one included. Fails if that cannot be kept.
count_starts() {
    local newest before=
    newest=$(newest_checkpoint) count=0
    if [[ -f $run/launch/starts ]]; then read -r before count <"$run/launch/starts"; fi
    if [[ $before != "$newest" ]]; then count=0; fi
    count=$((count + 1))
    echo "$newest $count" >"$run/launch/starts" && [[ $(<"$run/launch/starts") == "$newest $count" ]]
}

# again COMMAND...: a controller that restarts, or has much to do, answers a little later.
again() {
    for _ in 1 2 3 4; do
        if "$@"; then return 0; fi
        sleep 2
    done
    return 1
}

# Sets state, of this job; fails if nobody says it.
ask_state() { state=$(scontrol show job "$job" 2>/dev/null | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p' | head -n 1) && [[ -n $state ]]; }

go_on_later() {
    local by_hand="go on with: cispo launch slurm --resume $run" state="" count=0
    # A job that somebody cancels, or that Slurm itself requeues, is not ours to put back.
    if again ask_state && [[ $state != RUNNING ]]; then
        say "the job is being ended from outside ($state); $by_hand"
        exit 1
    fi
    if ! count_starts; then
        say "$run/launch/starts cannot be written, so this start would be repeated for ever: it is not. Make room, then $by_hand"
        exit 1
    fi
    if ((count > max_restarts)); then
        say "$count starts in a row ended at checkpoint $(newest_checkpoint), and slurm.max_restarts=$max_restarts:" \
            "this one does not go back into the queue. Mend the cause (logs: $logs), then go on with:" \
            "cispo launch slurm --resume $run"
        exit 1
    fi
    say "back into the queue from checkpoint $(newest_checkpoint) (start $count of $((max_restarts + 1)) at it)"
    sync
    again scontrol requeue "$job" || say "scontrol requeue failed; $by_hand"
    exit 75
}

say "job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, on ${nodes[*]}"
start_ray
status=1
if wait_for_nodes; then
    train
    status=$?
fi
end_all USR2 20 "${ray_nodes[@]}"                      # srun passes USR2 on; of TERM it makes KILL at once
rm -f "$RAY_AUTH_TOKEN_PATH"
if ((status == 0)); then
    rm -f "$run/launch/starts"
    say "the run is finished: $run"
    exit 0
fi
say "the run ended with status $status"
go_on_later
