//! What the core costs: time and allocations per packet through gateway and relay, memory and time per connection.
//!
//! Fakes stand for guest and host; no privilege is needed. `cargo bench --bench datapath` prints all figures;
//! docs/performance.md says what they mean. Single threaded, IPv4.

use std::process::ExitCode;

use rnet::net::Offload;
use rnet::sys::memory;

#[path = "datapath/allocation.rs"]
mod allocation;
#[path = "datapath/guest.rs"]
mod guest;
#[path = "datapath/idle.rs"]
mod idle;
#[path = "datapath/rig.rs"]
mod rig;
#[path = "datapath/traffic.rs"]
mod traffic;

use guest::Link;
use traffic::{Cost, Path, SMALL_BYTES, Traffic, measure};

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

const USAGE: &str = "usage: datapath [--packets [TEXT] | --connections | --memory | --check]
  --packets [TEXT]  time and allocations per packet, of lines that contain TEXT
  --connections     time per connection, opened and closed
  --memory          memory per idle connection
  --check           fails if a packet allocates in steady state, or costs more the more flows there are";
const OFFLOADS: [Offload; 3] = [Offload::None, Offload::ChecksumAndTso, Offload::ChecksumTsoAndUso];
const MTUS: [u16; 2] = [1500, 65_520];
/// Flows whose memory is measured, and the most that packets are measured with.
const MANY: usize = 10_000;
const SOME: usize = 1000;
/// Connections that come and go before memory counts, as a busy rnet has had them.
const CHURNED: usize = 100;
const ROUNDS: usize = 21;
const PACKETS_PER_ROUND: usize = 2000;
/// How much more a packet may cost among ten times the flows, or more, until the check fails. Caches account for
/// less than half of it; something that looks at every flow for each packet would be far beyond.
const MAX_RATIO: f64 = 4.0;
const CHECK_PACKETS_PER_ROUND: usize = 250;

fn main() -> ExitCode {
    memory::fix_mmap_threshold();
    // Cargo adds --bench.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [] => {
            print_packets("");
            print_connections();
            print_memory();
        }
        ["--packets"] => print_packets(""),
        ["--packets", text] => print_packets(text),
        ["--connections"] => print_connections(),
        ["--memory"] => print_memory(),
        ["--check"] => return check(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn links() -> impl Iterator<Item = Link> {
    OFFLOADS.into_iter().flat_map(|offload| MTUS.map(|mtu| Link { mtu, offload }))
}

fn label(path: Path, link: Link) -> String {
    format!("{:<20}  {:<17}  {:>5}", path.name(), format!("{:?}", link.offload), link.mtu)
}

fn print_packets(text: &str) {
    println!("ns per packet, by number of flows that carry traffic (last: one does, among {MANY})");
    println!(
        "{:<20}  {:<17}  {:>5}  {:>7}  {:>6}  {SOME:>6}  {MANY:>6}  {:>6}  {:>5}  {:>11}",
        "path", "offload", "MTU", "payload", 1, "one of", "ratio", "allocations"
    );
    for link in links() {
        for path in Path::ALL {
            if label(path, link).contains(text) {
                print_path(path, link);
            }
        }
    }
    for offload in OFFLOADS {
        let own_ns = guest::own_ns(Link { mtu: 1500, offload });
        println!("of which the fake guest itself, {offload:?}: {own_ns:.0} ns per TCP segment and answer");
    }
}

fn print_path(path: Path, link: Link) {
    let payload = path.largest_payload(link);
    let sizes = [(1, 1), (SOME, SOME), (MANY, MANY), (MANY, 1)];
    let mut traffic = sizes.map(|(flows, active)| Traffic::new(path, link, payload, flows, active));
    let costs = measure(&mut traffic, ROUNDS, PACKETS_PER_ROUND);
    assert!(traffic.iter().all(Traffic::is_complete), "all that is sent arrives");
    print!("{}  {payload:>7}", label(path, link));
    for cost in &costs {
        print!("  {:>6.0}", cost.ns_per_packet);
    }
    let ratio = costs[2].ns_per_packet / costs[0].ns_per_packet;
    println!("  {ratio:>5.1}  {:>11.4}", most_allocations(&costs));
}

fn most_allocations(costs: &[Cost]) -> f64 {
    costs.iter().map(|cost| cost.allocations_per_packet).fold(0.0, f64::max)
}

fn print_connections() {
    println!(
        "\nconnections opened together, each with a request and a response of 100 bytes, then all closed"
    );
    println!("{:>8}  {:>10}  {:>10}  {:>10}", "together", "open, ns", "close, ns", "per second");
    for (together, rounds) in [(1, 5001), (10, 501), (100, 101), (SOME, 21), (MANY, 5)] {
        let cost = idle::connection_cost(together, rounds);
        let per_second = 1e9 / (cost.open_ns + cost.close_ns);
        println!("{together:>8}  {:>10.0}  {:>10.0}  {per_second:>10.0}", cost.open_ns, cost.close_ns);
    }
}

fn print_memory() {
    let (before, with) = idle::memory(MANY, CHURNED);
    let grown = with.resident_bytes.saturating_sub(before.resident_bytes);
    println!("\nmemory of {MANY} idle connections, after {CHURNED} others have come and gone");
    println!("{} bytes per connection; {} mappings in all", grown / MANY as u64, with.mappings);
}

/// Checks what must hold on any machine, however busy: prints one line for each path.
fn check() -> ExitCode {
    let failed = links().flat_map(|link| Path::ALL.map(|path| (path, link))).filter(|(path, link)| {
        let steady = check_allocations(*path, *link);
        let flat = link.mtu != MTUS[0] || check_growth(*path, *link);
        !(steady && flat)
    });
    if failed.count() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn check_allocations(path: Path, link: Link) -> bool {
    let payload = path.largest_payload(link);
    let mut traffic = [1, 100].map(|flows| Traffic::new(path, link, payload, flows, flows));
    let costs = measure(&mut traffic, 3, CHECK_PACKETS_PER_ROUND);
    let complete = traffic.iter().all(Traffic::is_complete);
    let allocations = most_allocations(&costs);
    verdict(
        complete && allocations == 0.0,
        &format!("{}: {allocations:.4} allocations per packet", label(path, link)),
    )
}

/// Small packets, so that the work per packet counts rather than the copying.
fn check_growth(path: Path, link: Link) -> bool {
    let sizes = [(1, 1), (MANY, 1), (SOME, SOME), (MANY, MANY)];
    let mut traffic = sizes.map(|(flows, active)| Traffic::new(path, link, SMALL_BYTES, flows, active));
    let costs = measure(&mut traffic, ROUNDS, CHECK_PACKETS_PER_ROUND);
    let complete = traffic.iter().all(Traffic::is_complete);
    let idle = costs[1].ns_per_packet / costs[0].ns_per_packet;
    let active = costs[3].ns_per_packet / costs[2].ns_per_packet;
    let allocations = most_allocations(&costs);
    let text = format!(
        "{}: costs {idle:.1} times as much among {MANY} flows as alone, and {active:.1} times with {MANY} busy as \
         with {SOME} (limit {MAX_RATIO}); {allocations:.4} allocations per packet",
        label(path, link)
    );
    verdict(complete && allocations == 0.0 && idle <= MAX_RATIO && active <= MAX_RATIO, &text)
}

fn verdict(holds: bool, text: &str) -> bool {
    println!("{} {text}", if holds { "ok    " } else { "FAILED" });
    holds
}
