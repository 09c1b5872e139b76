//! Options of `docker run` that rnet does not have: why, and what stands in for them.
//!
//! Whoever has docker's habits learns it from the error, instead of a guess at another option's name.

/// Options of one meaning, and what to say to whoever gives one.
type Absent = (&'static [&'static str], &'static str);

const ABSENT: &[Absent] = &[
    (&["--cidfile"], "rnet run --detach prints the id; give the container a --name"),
    (&["-l", "--label"], "there are no labels; tell containers apart by --name"),
    (&["--env-file"], "give each variable with --env NAME=VALUE"),
    (
        &["--pull"],
        "images are not pulled; `skopeo copy docker://NAME oci-archive:image.tar` fetches one for ROOTFS",
    ),
    (&["--group-add"], "the command has the groups that the container's /etc/group gives to its --user"),
    (&["--expose"], "publish a port with --publish, and those that an image exposes with --publish-all"),
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
        &["--memory-reservation", "--memory-swappiness", "--kernel-memory", "--oom-kill-disable"],
        "--memory and --memory-swap are the limits of memory",
    ),
    (
        &["--cpu-period", "--cpu-quota", "--cpu-rt-period", "--cpu-rt-runtime", "--cpuset-mems"],
        "--cpus, --cpu-shares and --cpuset-cpus are the limits of processors",
    ),
    (
        &["--blkio-weight", "--blkio-weight-device", "--device-read-bps", "--device-write-bps"],
        "--io-weight is the share of disks, from 1 to 10000, where others have 100",
    ),
    (
        &["--shm-size", "--ipc", "--pid", "--uts", "--cgroupns"],
        "every container has namespaces of its own, and a /dev/shm of the kernel's default size",
    ),
    (
        &["--device", "--gpus"],
        "the command has null, zero, full, random, urandom and tty; bind another with --volume /dev/NAME:/dev/NAME",
    ),
    (
        &["-a", "--attach", "--sig-proxy"],
        "in the foreground rnet passes all signals and streams on; in the background (--detach) `rnet logs` has the output",
    ),
    (&["--log-driver", "--log-opt"], "output is kept with --detach only, as much of it as --log-max says"),
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
