# shellcheck shell=bash
# shellcheck disable=SC2016 # what expands, expands inside
# A container with an SSH server on a published port: whoever comes in sees the container alone, and the host sees nothing of
# what is done there. The server changes users and gives its terminals away, which takes more ids than one.
# shellcheck disable=SC2034 # run reads it
original=

RNET=/mnt/bin/rnet
TREE=$HOME/tree

# server: starts a container called `box` with this machine's programs, and files in /etc and /root of its own.
server() {
    needs dropbear ssh ssh-keygen pstree ps top newuidmap newgidmap
    local name
    mkdir -p "$TREE"/{usr,etc/dropbear,dev,proc,sys,tmp,run,var/log,root/.ssh}
    chmod 700 "$TREE/root" "$TREE/root/.ssh"
    for name in bin sbin lib lib64; do ln -s "usr/$name" "$TREE/$name"; done
    echo root:x:0:0:root:/root:/bin/sh >"$TREE/etc/passwd"
    printf 'root:x:0:\ntty:x:5:\n' >"$TREE/etc/group"
    echo 'root:*:19000:0:99999:7:::' >"$TREE/etc/shadow"
    echo /bin/sh >"$TREE/etc/shells"
    cp /etc/ld.so.cache "$TREE/etc/"
    ssh-keygen -q -t ed25519 -N '' -f "$HOME/key"
    install -m 600 "$HOME/key.pub" "$TREE/root/.ssh/authorized_keys"
    "$RNET" run -d --name box --hostname inside --userns=auto -p 127.0.0.1:2222:22 -v /usr:/usr:ro "$TREE" \
        dropbear -F -E -R -s -p 22 >/dev/null
    becomes says_ssh
}

says_ssh() { [ "$(timeout 2 bash -c 'exec 3<>/dev/tcp/127.0.0.1/2222; head -c 4 <&3' 2>/dev/null)" = SSH- ]; }

# there OPTION... LINE: runs it in the container as somebody who has come by ssh.
there() {
    timeout 20 ssh -F none -i "$HOME/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -o LogLevel=ERROR -o BatchMode=yes -p 2222 root@127.0.0.1 "$@"
}

# own KIND...: the namespaces of this scenario.
own() { for kind; do readlink "/proc/self/ns/$kind"; done; }

play_visitor_sees_the_container_alone() {
    server
    local said kind before
    sleep 600 & # A process of the host's, which has no business inside.
    before=$(hostname; cat /proc/self/mounts; own net ipc uts mnt pid user; ls /dev/shm)
    said=$(there 'ps -ax -o pid,args')
    has "$said" '1 dropbear -F -E'
    lacks "$said" 'sleep 600'
    lacks "$said" rnet
    has "$(there 'pstree -p')" 'dropbear(1)'
    said=$(there 'TERM=dumb top -bn1')
    has "$said" ' dropbear'
    is "$(grep -cw sleep <<<"$said")" 0
    is "$(there 'ls /' | tr '\n' ' ')" 'bin dev etc lib lib64 proc root run sbin sys tmp usr var '
    is "$(there hostname)" inside
    is "$(there 'whoami; getent passwd | wc -l')" $'root\n1'
    is "$(there 'cd /sys/class/net && echo *')" 'lo tap0'
    lacks "$(there 'cat /proc/mounts')" /mnt/home
    said=$(there 'readlink /proc/self/ns/*')
    for kind in $(own net ipc uts mnt pid user); do lacks "$said" "$kind"; done
    there 'hostname changed 2>/dev/null || true; echo left >/dev/shm/left; ipcmk -Q >/dev/null; echo x >/tmp/x'
    is "$(hostname; cat /proc/self/mounts; own net ipc uts mnt pid user; ls /dev/shm)" "$before"
    lacks "$(ipcs -q)" root
    [ ! -e /tmp/x ] || fail 'the container has written to the host'
    kill %1
    "$RNET" rm -f box >/dev/null
    becomes none_running dropbear
}

play_visitor_has_a_terminal() {
    server
    local said
    said=$(there -tt 'tty; stty -a | head -n 1; ps -o tty= -p $$; TERM=xterm top -bn1 | head -n 1' </dev/null)
    has "$said" /dev/pts/0
    has "$said" pts/0
    has "$said" 'top - '
    # Beside it, and not the same: a terminal of rnet's own making.
    said=$("$RNET" exec -it box tty </dev/null)
    has "$said" /dev/pts/
    "$RNET" rm -f box >/dev/null
}
