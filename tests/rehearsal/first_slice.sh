#!/usr/bin/env bash
# On the desk of clusters/rehearsal.sh: a cluster from clusters/local.yaml, a run on it, and its end. Lines that begin with
# `== ` are for the test that reads them.
set -uo pipefail
HEAD=198.18.0.1 WORKER=198.18.0.2
FOLDER=/mnt/home/runs/lunarlander-1

say() { printf '\n== %s\n' "$*"; } # the run's progress does not end its line
at() { ssh -q "root@$1" "${@:2}"; }
seconds() { echo "$(date +%s.%N) $BEGAN" | awk '{printf "%.1f", $1 - $2}'; }

ray get-auth-token --generate >/dev/null || exit 1
BEGAN=$(date +%s.%N)
for _ in 1 2 3; do # where a machine is so busy that Ray's processes miss one another, another try
  ray up -y --disable-usage-stats clusters/local.yaml </dev/null && break
done
say "up $(seconds)"

at $HEAD "until ls $FOLDER/store/*.arrow >/dev/null 2>&1; do sleep 0.1; done" && say "stored $(seconds)" &
watch=$!
ray exec clusters/local.yaml "cd ~/bigdm_ray && .venv/bin/python -m bigdm_ray.run udrl lunarlander --address auto --actors 2 \
  --budget.env-steps 6000 --evaluations.final-episodes 5 --folder $FOLDER"
say "run $? $(seconds)"
kill $watch 2>/dev/null
say "nodes $(at $HEAD 'RAY_AUTH_MODE=token ~/bigdm_ray/.venv/bin/ray status' | awk '/local.cluster.node/ {n += $1} END {print n}')"
for machine in $HEAD $WORKER; do
  say "actors $machine $(at $machine "cat /tmp/ray/session_latest/logs/worker-*.out | sed -n 's/^:actor_name://p' | sort -u | xargs")"
done
say "summary $(at $HEAD "cat $FOLDER/summary.json" | tr -d '\n')"

say "stranger $(at $HEAD 'cd ~/bigdm_ray && HOME=/tmp .venv/bin/python -m bigdm_ray.run udrl cartpole --address auto --quiet; echo $?' 2>&1 | tr '\n' ' ')"

at $HEAD 'cp /bin/sleep /tmp/raylet; setsid /tmp/raylet 1000 >/dev/null 2>&1 </dev/null &'
ray down -y clusters/local.yaml </dev/null
say "down $? $(seconds)"
for machine in $HEAD $WORKER; do
  at $machine 'for _ in $(seq 600); do pgrep raylet >/dev/null || exit 0; sleep 0.1; done; exit 1'
  say "ended $machine $? $(seconds)"
done
