#!/usr/bin/env bash
# Machines to rehearse clusters/local.yaml on, where there are none.
#
#   clusters/rehearsal.sh             a shell on a desk that reaches two machines
#   clusters/rehearsal.sh COMMAND...  that command on the desk, and its exit code
#   clusters/rehearsal.sh --install   apt install what it needs, where that starts no server
#
# The machines are 198.18.0.1 and .2, or as many as MACHINES says. Each has its own network, processes, home (/mnt/home),
# /tmp and /dev/shm, and OpenSSH's server on port 22; the desk has a key to them in its own ~/.ssh. They are namespaces of this
# machine: they share its processors, memory and disk. Nothing outside is seen from there, reached from there, or ended by
# `ray stop`, and nobody's ~/.ssh or sshd is touched. All of it ends with the command.
#
# It takes root (it calls unshare), Debian's openssh-server and rsync, and the project's environment, which the machines find
# in their ~/bigdm_ray/.venv: PYTHON names its interpreter (.venv/bin/python).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

NET=198.18.0 # the range that RFC 2544 keeps for tests of networks: no route leads there
HOME_THERE=/mnt/home
SCRIPT=$(realpath "$0")
PROJECT=$(dirname "$(dirname "$SCRIPT")")

PACKAGES=(iproute2 openssh-client openssh-server rsync)

fail() {
  echo "error: $*" >&2
  exit 2
}

missing() { # the first command that is
  local name
  for name in ip rsync ssh ssh-keygen sshd setpriv unshare; do
    command -v "$name" >/dev/null || { echo "$name" && return; }
  done
}

# Debian starts sshd when it is installed, for everybody who reaches the machine; not in a container, which has no systemd.
install() {
  [ -n "$(missing)" ] || return 0
  if [ "$(id -u)" = 0 ] && [ ! -d /run/systemd/system ]; then
    apt-get -qq update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
      apt-get -qq install -y --no-install-recommends "${PACKAGES[@]}" || true
  fi
  [ -z "$(missing)" ] || echo "note: the rehearsal of a cluster needs $(missing); apt install ${PACKAGES[*]}" >&2
}

check() {
  [ "$(id -u)" = 0 ] || fail "the rehearsal makes namespaces, which takes root; give the command through sudo"
  local name
  name=$(missing)
  [ -z "$name" ] || fail "$name is missing; apt install ${PACKAGES[*]}"
  [ -x "$PYTHON" ] || fail "$PYTHON is no interpreter; \`make install\` makes one, or name another in PYTHON"
  unshare --net --pid --mount --fork --mount-proc true 2>/dev/null || fail "the kernel allows no namespaces here; in a container they take CAP_SYS_ADMIN"
}

keep() { # DESCRIPTOR PATH: the folder that is open there is at that path, where it is hidden now
  [ "/proc/self/fd/$1" -ef "$2" ] && return
  mkdir -p "$2"
  mount --no-canonicalize --rbind "/proc/self/fd/$1" "$2"
}

# What a namespace has of its own on disk; the project and its Python stay where they are, also where that is below /tmp.
private_folders() {
  local prefix
  prefix=$("$PYTHON" -c 'import sys; print(sys.prefix)')
  exec 8<"$PROJECT" 9<"$prefix"
  mount --make-rprivate /
  mount -t tmpfs -o mode=755 none /mnt
  mount -t tmpfs -o mode=755 none /run
  mount -t tmpfs none /tmp
  mount -t tmpfs none /dev/shm
  keep 8 "$PROJECT"
  keep 9 "$prefix"
  exec 8<&- 9<&-
  mkdir -p /run/sshd "$HOME_THERE"
  { echo "root:x:0:0:root:$HOME_THERE:/bin/bash"; grep -v '^\(root\|sshd\):' /etc/passwd; echo "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin"; } >/run/passwd
  { echo 'root:*:::::::'; echo 'sshd:!:::::::'; } >/run/shadow
  mount --bind /run/passwd /etc/passwd
  mount --bind /run/shadow /etc/shadow
  export HOME=$HOME_THERE USER=root LOGNAME=root
  cd
}

network() { # NAME ADDRESS: bring up that end of a cable
  until ip link show "$1" >/dev/null 2>&1; do sleep 0.05; done
  ip link set lo up
  ip address add "$NET.$2/24" dev "$1"
  ip link set "$1" up
}

# An environment that has what the project's has, and no more, and can be installed into: a machine is not asked to download.
environment() {
  local site
  site=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$PYTHON" -m venv --without-pip "$1"
  echo "$site" >"$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/rehearsal.pth"
  printf '#!%s/bin/python\nfrom pip._internal.cli.main import main\nraise SystemExit(main())\n' "$1" >"$1/bin/pip"
  printf '#!%s/bin/python\nfrom ray.scripts.scripts import main\nraise SystemExit(main())\n' "$1" >"$1/bin/ray"
  chmod +x "$1/bin/pip" "$1/bin/ray"
  mkdir -p ~/.config/pip
  printf '[global]\nno-index = true\n[install]\nno-build-isolation = false\n' >~/.config/pip/pip.conf
}

machine() { # NUMBER KEY
  private_folders
  network cable "$1"
  cp -r /etc/skel/. ~
  mkdir -p ~/bigdm_ray
  environment ~/bigdm_ray/.venv
  mkdir -m 700 /run/ssh
  echo "$2" >/run/ssh/authorized_keys
  ssh-keygen -q -t ed25519 -N '' -f /run/ssh/host_key
  cat >/run/ssh/config <<END
ListenAddress $NET.$1
HostKey /run/ssh/host_key
AuthorizedKeysFile /run/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
END
  "$(command -v sshd)" -D -E /run/ssh/log -f /run/ssh/config &
  wait # as process 1 it takes in the orphans too
}

desk() { # COMMAND...
  private_folders
  ssh-keygen -q -t ed25519 -N '' -C desk -f "$(mkdir -m 700 -p ~/.ssh && echo ~/.ssh/id_ed25519)"
  ip link add desk type bridge
  network desk 254
  local number
  for number in $(seq "$MACHINES"); do
    unshare --net --pid --mount --fork --mount-proc --kill-child "$SCRIPT" --machine "$number" "$(cat ~/.ssh/id_ed25519.pub)" </dev/null &
    until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
    ip link add "to$number" type veth peer name cable netns $!
    ip link set "to$number" master desk up
  done
  export PATH="$(dirname "$PYTHON"):$PATH"
  cd "$PROJECT"
  for number in $(seq "$MACHINES"); do
    until (: >"/dev/tcp/$NET.$number/22") 2>/dev/null; do sleep 0.1; done
    ssh -q -o StrictHostKeyChecking=accept-new -o BatchMode=yes "root@$NET.$number" true || fail "machine $number lets nobody in"
  done
  "$@"
}

case ${1:-} in
--machine) machine "$2" "$3" ;;
--desk) desk "${@:2}" ;;
--install) install ;;
*)
  export MACHINES=${MACHINES:-2}
  PYTHON=${PYTHON:-$PROJECT/.venv/bin/python}
  export PYTHON
  check
  [ $# -gt 0 ] || set -- bash
  # unshare lets no signal through: whatever ends this shell ends it, and with it all that it has started
  setpriv --pdeathsig KILL unshare --net --pid --mount --fork --mount-proc --kill-child "$SCRIPT" --desk "$@" || exit $?
  ;;
esac
