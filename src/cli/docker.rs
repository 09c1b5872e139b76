//! Options of `docker run` that rnet does not have: why, and what stands in for them.
//!
//! Whoever has docker's habits learns it from the error, instead of a guess at another option's name.

/// Options of one meaning, and what to say to whoever gives one.
type Absent = (&'static [&'static str], &'static str);

const ABSENT: &[Absent] = &[
    (
        &["-d", "--detach"],
        "rnet stays in the foreground and ends with the command; put it there with & or systemd-run",
    ),
    (
        &["--cidfile", "-l", "--label"],
        "a container leaves nothing behind; --name is what `rnet port` calls it",
    ),
    (&["--env-file"], "give each variable with --env NAME=VALUE"),
    (&["--entrypoint"], "there are no images, and so no entry points; name the command behind ROOTFS"),
    (&["--pull", "--platform"], "there are no images; ROOTFS is a directory"),
    (&["--group-add"], "the command has the groups that the container's /etc/group gives to its --user"),
    (
        &["-P", "--publish-all", "--expose"],
        "there are no images that would name ports; publish each with --publish",
    ),
    (&["--add-host"], "for a name of its own bind a file with --volume ./hosts:/etc/hosts"),
    (
        &["--dns-search", "--dns-option", "--dns-opt"],
        "the search list and options are those of the host's /etc/resolv.conf",
    ),
    (
        &["--volumes-from"],
        "give each container its own --volume SRC:DST[:ro]; what they bind of the host they share",
    ),
    (
        &["-m", "--memory", "-c", "--cpus", "--cpu-shares", "--cpuset-cpus", "--pids-limit"],
        "limits come from outside: systemd-run --user --scope -p MemoryMax=1G -p TasksMax=100 rnet run ...",
    ),
    (&["--ulimit"], "the command has the limits of the shell that starts rnet: ulimit"),
    (
        &["--shm-size", "--ipc", "--pid", "--uts", "--cgroupns"],
        "every container has namespaces of its own, and a /dev/shm of the kernel's default size",
    ),
    (
        &["--privileged", "--cap-add", "--cap-drop", "--security-opt"],
        "the command has all capabilities in its own user namespace, and none outside",
    ),
    (
        &["--device", "--gpus"],
        "the command has null, zero, full, random, urandom and tty; bind another with --volume /dev/NAME:/dev/NAME",
    ),
    (
        &["--restart", "--stop-signal", "--stop-timeout", "-a", "--attach", "--sig-proxy"],
        "rnet ends with the command, and passes signals and streams on; restarting is for systemd or a shell loop",
    ),
    (&["--log-driver", "--log-opt"], "the command's output is rnet's own; redirect it"),
];

/// What to say to whoever gives `option` of docker, written as on its command line without a value.
pub(super) fn instead_of(option: &str) -> Option<&'static str> {
    let entry = ABSENT.iter().find(|(options, _)| options.contains(&option));
    entry.map(|(_, instead)| *instead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_of_ours_is_called_absent() {
        use clap::CommandFactory;
        let rnet = super::super::args::RnetArgs::command();
        let run = rnet.find_subcommand("run").expect("there is one");
        for argument in run.get_arguments() {
            let long = argument.get_long().map(|long| format!("--{long}"));
            let short = argument.get_short().map(|short| format!("-{short}"));
            for option in long.into_iter().chain(short) {
                assert_eq!(instead_of(&option), None, "{option}");
            }
        }
    }
}
