//! What a container uses: by its cgroup if it has one of its own, else by its processes, found by their PID namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use super::cgroup;
use crate::error::{Error, Result};

/// What the processes of a container have used, and use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time on processors since its start. By processes: of those that live or were waited for.
    pub cpu: Duration,
    /// Memory in bytes, without cached files that can be dropped at once.
    pub memory_bytes: u64,
    /// What it may be at most; the machine's if it is not limited.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Bytes that its interfaces other than `lo` have received, and sent; `None` in the host's network.
    pub network_bytes: Option<(u64, u64)>,
}

/// What the container whose first process is `pid` uses.
pub fn usage(pid: i32) -> Result<Usage> {
    let gone = || Error::new("cannot look at the container of", pid, "its first process has ended");
    let by_cgroup = cgroup::of_process(pid).and_then(|cgroup| of_cgroup(&cgroup));
    let usage = by_cgroup.or_else(|| of_namespace(pid)).ok_or_else(gone)?;
    let machine = machine_memory_bytes();
    Ok(Usage {
        memory_limit_bytes: usage.memory_limit_bytes.min(machine),
        network_bytes: network_bytes(pid),
        ..usage
    })
}

/// `None` if the cgroup is gone, or memory is not counted there: then its processes tell.
fn of_cgroup(cgroup: &Path) -> Option<Usage> {
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let droppable = member(&read("memory.stat")?, "inactive_file").unwrap_or_default();
    Some(Usage {
        cpu: Duration::from_micros(member(&read("cpu.stat")?, "usage_usec")?),
        memory_bytes: number("memory.current").unwrap_or_default().saturating_sub(droppable),
        memory_limit_bytes: number("memory.max").unwrap_or(u64::MAX),
        processes: match number("pids.current") {
            Some(count) => count,
            None => read("cgroup.threads")?.lines().count() as u64,
        },
        network_bytes: None,
    })
}

/// The sums of all processes in the PID namespace whose first one is `first`.
fn of_namespace(first: i32) -> Option<Usage> {
    let namespace = |process: &Path| fs::read_link(process.join("ns/pid")).ok();
    let wanted = namespace(&PathBuf::from(format!("/proc/{first}")))?;
    let entries = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let members = entries.filter(|process| namespace(process).as_ref() == Some(&wanted));
    let mut total = Usage { memory_limit_bytes: u64::MAX, ..Usage::default() };
    for process in members {
        let read = |file: &str| fs::read_to_string(process.join(file)).unwrap_or_default();
        let (ticks, threads) = ticks_and_threads(&read("stat")).unwrap_or_default();
        total.cpu += time(ticks);
        total.processes += threads;
        total.memory_bytes += kilobytes(&read("smaps_rollup"), "Pss:").unwrap_or_default() * 1024;
    }
    Some(total)
}

/// Of a process's stat (proc_pid_stat(5)): the clock ticks that it and the children that it waited for have had, and its
/// threads.
fn ticks_and_threads(stat: &str) -> Option<(u64, u64)> {
    // The second field is a name in parentheses, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = [11, 12, 13, 14].into_iter().map(number).sum::<Option<u64>>()?;
    Some((ticks, number(17)?))
}

fn time(ticks: u64) -> Duration {
    const USUAL: i64 = 100;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(USUAL);
    Duration::from_millis(ticks * 1000 / u64::try_from(per_second).unwrap_or(100).max(1))
}

/// The number behind `name` at the beginning of a line.
fn member(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The number behind `name`, with `kB` behind it.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok())
}

fn machine_memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kilobytes(&text, "MemTotal:").map_or(u64::MAX, |kilobytes| kilobytes * 1024)
}

fn network_bytes(pid: i32) -> Option<(u64, u64)> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    if namespace("self") == namespace(&pid.to_string()) {
        return None;
    }
    fs::read_to_string(format!("/proc/{pid}/net/dev")).ok().map(|text| interface_bytes(&text))
}

/// Of a /proc/PID/net/dev (proc_pid_net(5)): what all interfaces but `lo` have received and sent.
fn interface_bytes(text: &str) -> (u64, u64) {
    let interfaces = text.lines().filter_map(|line| line.split_once(':'));
    let counted = interfaces.filter(|(name, _)| name.trim() != "lo").map(|(_, fields)| {
        let number =
            |at: usize| fields.split_whitespace().nth(at).and_then(|field| field.parse::<u64>().ok());
        (number(0).unwrap_or_default(), number(8).unwrap_or_default())
    });
    counted.fold((0, 0), |(received, sent), (more_received, more_sent)| {
        (received + more_received, sent + more_sent)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_those_of_the_process_and_of_its_children() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 100 0 0 0 10 20 300 4000 20 0 3 0 500 1 2";
        assert_eq!(ticks_and_threads(stat), Some((4330, 3)));
        assert_eq!(ticks_and_threads("7 (x) S 1"), None);
    }

    #[test]
    fn the_kernels_tables_are_read() {
        assert_eq!(member("inactive_anon 5\ninactive_file 77\n", "inactive_file"), Some(77));
        assert_eq!(member("usage_usec_x 5\n", "usage_usec"), None);
        assert_eq!(kilobytes("Rss: 5 kB\nPss:              12 kB\n", "Pss:"), Some(12));
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n    lo: 9 1 0 0 0 0 0 0 9 1\n  \
                   tap0: 100 1 0 0 0 0 0 0 2000 1 0\n  tap1:    5 1 0 0 0 0 0 0 6 1\n";
        assert_eq!(interface_bytes(dev), (105, 2006));
    }

    #[test]
    fn own_processes_are_counted() {
        let own = of_namespace(nix::unistd::Pid::this().as_raw()).expect("it lives");
        assert!(own.processes > 0 && own.memory_bytes > 0);
        assert!(usage(i32::MAX).is_err());
    }
}
