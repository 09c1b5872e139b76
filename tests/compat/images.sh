# shellcheck shell=bash disable=SC2016,SC2034 # scripts run elsewhere, and what is set here is used by lab.sh
# Images that buildah has made, run by rnet; for comparison by podman.

original=podman
unlike podman a_damaged_blob_is_refused_and_nothing_stays "podman has the layer already, as buildah has made it"
unlike podman a_compressed_docker_archive_runs "podman 4.3 loads only what is not compressed"
unlike podman zstd_layers_are_unpacked "podman loads archives, and no directories"
unlike podman exposed_ports_are_published_on_request "it runs without a network here"
unlike podman a_directory_is_an_image_too "podman runs what it has pulled, and no directories"

# bud ARGUMENT...: buildah as it works without kernel help.
bud() { buildah --storage-driver=vfs "$@"; }

# image DIRECTORY: makes image `box` of a directory: an entry point that tells what it was given, and a port.
image() {
    needs buildah
    mkdir -p ~/bin && printf '%s\n' '#!/bin/sh' 'echo "$WORD $(pwd) $*"' >~/bin/told && chmod 755 ~/bin/told
    BOX=$(bud from scratch)
    bud copy "$BOX" "$1" / >/dev/null
    bud copy "$BOX" ~/bin/told /bin/told >/dev/null
    bud config --entrypoint '["/bin/told","first"]' --cmd 'second third' --env WORD=hello --workingdir /work \
        --port 7000 "$BOX"
    bud commit -q "$BOX" box >/dev/null
}

# layer COMMAND...: changes the box from inside and commits a layer more.
layer() {
    bud run --isolation chroot "$BOX" -- "$@"
    bud commit -q "$BOX" box >/dev/null
}

# run_image ARCHIVE [ARGUMENT...]: runs what is in an archive; options are in the array `options`.
options=()
run_image() {
    local archive=$1
    shift
    if [ "$UNDER_TEST" = rnet ]; then
        timeout 30 /mnt/bin/rnet run "${options[@]}" "$archive" "$@"
    else
        needs podman
        local name
        name=$(podman --storage-driver=vfs load -q -i "$archive" | sed -n '$s/^Loaded image[^ ]* //p')
        timeout 30 podman --storage-driver=vfs --cgroup-manager=cgroupfs --runtime=runc run --rm --network=none \
            "${options[@]}" "$name" "$@"
    fi
}

play_an_archive_runs_with_its_own_entrypoint() {
    image /mnt/rootfs
    bud push -q box oci-archive:box.tar:box
    is "$(run_image ./box.tar)" "hello /work first second third"
    is "$(run_image ./box.tar other)" "hello /work first other"
    options=(-e WORD=bye -w /bin)
    is "$(run_image ./box.tar)" "bye /bin first second third"
    options=(--entrypoint /bin/echo)
    is "$(run_image ./box.tar)" ""
    is "$(run_image ./box.tar some words)" "some words"
}

play_layers_delete_and_replace() {
    cp -r /mnt/rootfs tree && mkdir tree/gone tree/opaque && touch tree/gone/a tree/opaque/old && echo old >tree/kept
    image tree
    layer sh -c 'rm -r /gone /opaque /bin/who; mkdir /opaque; touch /opaque/new; echo new >/kept; chmod 4711 /bin/told'
    bud push -q box oci-archive:box.tar:box
    options=(--entrypoint /bin/sh)
    is "$(run_image ./box.tar -c 'ls /opaque; cat /kept; ls -d /gone /bin/who 2>&1 | wc -l; stat -c %a /bin/told')" \
        "$(printf 'new\nnew\n2\n4711')"
}

play_the_images_user_has_its_files() {
    cp -r /mnt/rootfs tree && mkdir -p tree/home/web tree/etc
    echo web:x:1000:100:web:/home/web:/bin/sh >>tree/etc/passwd
    echo users:x:100:web >tree/etc/group
    image tree
    layer sh -c 'echo mine >/home/web/file; chown -R 1000:100 /home/web; cp /bin/busybox /bin/mine
        chown 0:100 /bin/mine; chmod 2755 /bin/mine'
    bud config --user web --workingdir /home/web --entrypoint '["/bin/sh","-c"]' \
        --cmd '"id -u; id -g; echo $HOME; echo more >>file && cat file; stat -c %u:%g:%a . /bin/mine /bin/sh"' "$BOX"
    bud commit -q "$BOX" box >/dev/null
    bud push -q box oci-archive:box.tar:box
    is "$(run_image ./box.tar)" "$(printf '%s\n' 1000 100 /home/web mine more 1000:100:755 0:100:2755 0:0:777)"
    options=(--user 0)
    is "$(run_image ./box.tar 'id -u; echo $HOME')" "$(printf '0\n/root')"
}

play_exposed_ports_are_published_on_request() {
    image /mnt/rootfs
    bud config --entrypoint '["/bin/sh","-c","echo up; nc -l -p 7000 -e /bin/told"]' --cmd '' "$BOX"
    bud commit -q "$BOX" box >/dev/null
    bud push -q box oci-archive:box.tar:box
    options=(--publish-all --name web)
    run_image ./box.tar >said &
    becomes_text up cat said
    local port
    port=$(/mnt/bin/rnet port ls web | sed -n 's/^7000.tcp -> 0.0.0.0:\([0-9]*\)$/\1/p')
    has "$(asks 127.0.0.1 "$port")" "hello /work"
    wait %1
}

play_a_directory_is_an_image_too() {
    image /mnt/rootfs
    bud push -q box oci:layout:first
    bud config --env WORD=again "$BOX"
    bud commit -q "$BOX" box >/dev/null
    bud push -q box oci:layout:second
    is "$(run_image ./layout:first)" "hello /work first second third"
    is "$(run_image ./layout:second)" "again /work first second third"
    has "$(refuses run_image ./layout)" "first, second"
    has "$(refuses run_image ./layout:third)" "nothing called third"
}

play_zstd_layers_are_unpacked() {
    image /mnt/rootfs
    bud push -q --compression-format zstd box oci:layout:box
    [ "$(file_magic layout)" = 28b52ffd ] || skip "this buildah does not compress by zstd"
    is "$(run_image ./layout:box)" "hello /work first second third"
}

# file_magic LAYOUT: the first bytes of its largest blob.
file_magic() { find "$1/blobs/sha256" -type f -size +100k -exec xxd -l 4 -p {} \;; }

play_the_variant_for_this_machine_is_taken() {
    image /mnt/rootfs
    bud manifest create many >/dev/null
    bud manifest add many box >/dev/null
    bud config --arch s390x --env WORD=foreign "$BOX"
    bud commit -q "$BOX" foreign >/dev/null
    bud manifest add many foreign >/dev/null
    bud manifest push -q --all many oci-archive:many.tar:many
    is "$(run_image ./many.tar)" "hello /work first second third"
    if [ "$UNDER_TEST" = rnet ]; then
        options=(--platform linux/s390x)
        has "$(run_image ./many.tar 2>&1)" "the image is for linux/s390x"
        options=(--platform linux/arm/v7)
        has "$(refuses run_image ./many.tar)" "linux/arm/v7"
    fi
}

play_a_docker_archive_runs() {
    image /mnt/rootfs
    bud push -q box docker-archive:box.tar:box:latest
    is "$(run_image ./box.tar)" "hello /work first second third"
}

play_a_compressed_docker_archive_runs() {
    image /mnt/rootfs
    bud push -q box docker-archive:box.tar:box:latest
    gzip box.tar
    is "$(run_image ./box.tar.gz)" "hello /work first second third"
}

play_a_damaged_blob_is_refused_and_nothing_stays() {
    image /mnt/rootfs
    bud push -q box oci:layout:box
    local blob
    blob=$(find layout/blobs/sha256 -type f -size +100k)
    printf 'x' | dd of="$blob" bs=1 seek=50000 conv=notrunc status=none
    tar -C layout -cf box.tar .
    has "$(refuses run_image ./box.tar)" "${blob##*/}"
    [ "$UNDER_TEST" != rnet ] || is "$(find ~/.cache/rnet/images -mindepth 2)" ""
}
