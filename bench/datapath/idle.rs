//! What connections cost beside their packets: memory while they idle, time to open and close them.

use std::fs;
use std::time::{Duration, Instant};

use rnet::net::Offload;

use crate::guest::Link;
use crate::rig::Rig;

/// What each idle connection has carried, each way.
const SMALL_BYTES: usize = 100;
const LINK: Link = Link { mtu: 65_520, offload: Offload::ChecksumAndTso };
/// Linux's page size on the machines that rnet runs on; statm counts in it.
const PAGE_BYTES: u64 = 4096;

/// Resident memory and mappings of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) resident_bytes: u64,
    pub(crate) mappings: usize,
}

impl Memory {
    /// As the kernel says now (proc(5), statm and maps).
    fn now() -> Self {
        let read = |file| fs::read_to_string(file).expect("procfs is mounted");
        let statm = read("/proc/self/statm");
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        let resident_bytes = pages.expect("statm holds numbers") * PAGE_BYTES;
        Self { resident_bytes, mappings: read("/proc/self/maps").lines().count() }
    }
}

/// Memory before and with `flows` idle connections that have each carried a little both ways, after `churned` others
/// have come and gone.
pub(crate) fn memory(flows: usize, churned: usize) -> (Memory, Memory) {
    let mut rig = Rig::new(LINK, SMALL_BYTES);
    fill(&mut rig, churned);
    rig.close_all();
    let before = Memory::now();
    fill(&mut rig, flows);
    (before, Memory::now())
}

fn fill(rig: &mut Rig, flows: usize) {
    for at in 0..flows {
        rig.open_tcp();
        rig.send(at);
        rig.turn();
        rig.host_sends(at, SMALL_BYTES);
        rig.turn();
        rig.acknowledge(at);
        rig.turn();
    }
}

/// Nanoseconds that one connection costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionCost {
    /// From its SYN until it has carried a request and a response.
    pub(crate) open_ns: f64,
    /// From the guest's FIN until its host socket is released.
    pub(crate) close_ns: f64,
}

/// The cost of a connection when `together` are opened, then all closed: the median of `rounds`. With more than one
/// round memory is as a busy rnet has it.
pub(crate) fn connection_cost(together: usize, rounds: usize) -> ConnectionCost {
    let mut rig = Rig::new(LINK, SMALL_BYTES);
    let (mut open, mut close) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    for _ in 0..rounds {
        let start = Instant::now();
        fill(&mut rig, together);
        open.push(start.elapsed());
        let start = Instant::now();
        rig.close_all();
        close.push(start.elapsed());
    }
    assert_eq!(rig.released(), (together * rounds) as u64, "every connection has ended");
    let median_ns = |times: &mut [Duration]| {
        times.sort();
        times[times.len() / 2].as_nanos() as f64 / together as f64
    };
    ConnectionCost { open_ns: median_ns(&mut open), close_ns: median_ns(&mut close) }
}
