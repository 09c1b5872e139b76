//! Networks that have a name: several containers with one gateway.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::{HOST, Host, REMOTE, Root};
use crate::process::{Outcome, PATIENCE, Process, is_alive, wait_for, wait_within};
use crate::services::{echo, tcp};

over_links![
    names_lead_both_ways_over_tcp_and_ping,
    datagrams_cross_and_are_answered,
    a_bulk_of_bytes_arrives_as_it_was_sent
];
over_any_link![
    who_is_outside_reaches_nobody,
    an_internal_network_has_no_way_out,
    others_lead_out_and_are_published,
    a_busy_port_shows_before_the_command_starts,
    broadcasts_stay_within,
    nobody_takes_anothers_address,
    the_last_one_ends_the_gateway,
    a_killed_gateway_is_noticed_and_the_next_one_is_another,
    a_killed_container_leaves_nothing,
    addresses_and_names_are_those_that_were_asked_for,
    containers_come_and_go_while_they_run,
    twenty_containers_find_each_other,
    networks_are_made_listed_and_removed,
    ports_are_added_at_run_time,
];

fn names_lead_both_ways_over_tcp_and_ping(host: &Host) {
    rnet(host, &["network", "create", "net1"]).success();
    let serve = "echo up; (nc -ll -p 80 -e echo tcp of db) & wait";
    let mut db = member(host, "db", &[], serve);
    let ask = "echo up; nslookup db | grep -c Name; nc -w 5 db 80; nc -w 5 db.net1 80; \
               ping -4 -c 2 -W 5 db >/dev/null && echo ping; \
               ping -6 -c 2 -W 5 db >/dev/null && echo ping6; \
               nc -ll -p 80 -e echo tcp of web";
    let mut web = member(host, "web", &[], ask);
    web.wait_for_output("up\n2\ntcp of db\ntcp of db\nping\nping6\n");
    let line = "nc -w 5 web 80; ping -c 1 -W 5 web >/dev/null && echo ping";
    assert_eq!(host.sh(&["--net", "net1"], line), "tcp of web\nping\n");
    assert!(!db.has_ended());
}

/// Of all sizes, fragments and what a kernel would cut apart among them.
fn datagrams_cross_and_are_answered(host: &Host) {
    rnet(host, &["network", "create", "net1", "--mtu", "1500"]).success();
    let serve = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 99)); print('up', flush=True)\n\
                 while True:\n d, a = s.recvfrom(65535); s.sendto(d, a)";
    let options = ["--net", "net1", "--name", "db"];
    let mut db = host.start_python(&options, serve, &[]);
    db.wait_for_output("up\n");
    let ask = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(10); s.connect(('db', 99))\n\
               for n in (0, 1, 1472, 1473, 9000, 65507):\n s.send(b'x' * n); assert s.recv(65535) == b'x' * n\n\
               s.setsockopt(socket.IPPROTO_UDP, 103, 1000); s.send(b'y' * 10000)\n\
               print([len(s.recv(65535)) for _ in range(10)])";
    let seen = host.python(&["--net", "net1"], ask, &[]);
    assert_eq!(seen, format!("{:?}\n", [1000; 10]));
}

fn a_bulk_of_bytes_arrives_as_it_was_sent(host: &Host) {
    const MIB: usize = 64;
    rnet(host, &["network", "create", "net1"]).success();
    let serve = "nc -l -p 80 | md5sum; nc -l -p 81 < /dev/null; head -c 67108864 /dev/zero | md5sum";
    let mut sink = member(host, "sink", &[], &format!("echo up; {serve}; sleep 60"));
    let send =
        format!("head -c {} /dev/zero | nc -w 20 sink 80; sleep 1; nc -w 5 sink 81; echo sent", MIB << 20);
    assert!(host.sh(&["--net", "net1"], &send).ends_with("sent\n"));
    let sums = wait_for("both sums", || {
        let sums: Vec<String> = sink.stdout().lines().skip(1).map(str::to_owned).collect();
        (sums.len() == 2).then_some(sums)
    });
    assert_eq!(sums[0], sums[1]);
    assert!(!sink.has_ended());
}

fn who_is_outside_reaches_nobody(host: &Host) {
    for name in ["net1", "net2"] {
        rnet(host, &["network", "create", name]).success();
    }
    let _db = member(host, "db", &[], "echo up; nc -ll -p 80 -e echo db");
    let outside = "nc -w 3 10.89.0.2 80; ping -c 1 -W 2 10.89.0.2 >/dev/null && echo reached; \
                   nslookup db.net1 2>&1 | grep 10.89.0.2; echo done";
    for options in [&["--net", "net2"][..], &[]] {
        assert_eq!(host.sh(options, outside), "done\n", "{options:?}");
    }
}

fn an_internal_network_has_no_way_out(host: &Host) {
    rnet(host, &["network", "create", "--internal", "net1"]).success();
    let service = tcp(host.remote(), (REMOTE, 0), echo);
    let _db = member(host, "db", &[], "echo up; nc -ll -p 80 -e echo db");
    let line = format!(
        "nc -w 5 db 80; nc -w 5 {REMOTE} {} </dev/null; ping -c 1 -W 2 {REMOTE} >/dev/null && echo out; \
         nslookup example.org 2>&1 | grep -c NXDOMAIN",
        service.port()
    );
    assert_eq!(host.sh(&["--net", "net1"], &line).lines().next(), Some("db"));
    assert_eq!(service.met(), 0);
    let seen = host.sh(&["--net", "net1"], "nslookup example.org 2>&1 || true");
    assert!(seen.contains("NXDOMAIN") || seen.contains("can't resolve"), "{seen}");
}

fn others_lead_out_and_are_published(host: &Host) {
    rnet(host, &["network", "create", "net1"]).success();
    let service = tcp(host.remote(), (REMOTE, 0), echo);
    let line = format!("echo hello | nc -w 5 {REMOTE} {}", service.port());
    assert_eq!(host.sh(&["--net", "net1"], &line), "hello\n");
    let mut guest = host.start(
        &["--net", "net1", "-p", "8080:80"],
        Root::Busybox,
        &["nc", "-ll", "-p", "80", "-e", "echo", "published"],
    );
    let other = member(host, "other", &["-p", "8081:80"], "echo up; exec nc -ll -p 80 -e echo other");
    for (port, expected) in [(8080, "published\n"), (8081, "other\n")] {
        let answer = wait_for("an answer", || read(host.dial((HOST, port)).ok()?));
        assert_eq!(answer, expected);
    }
    assert!(!guest.has_ended());
    assert!(other.stderr().is_empty());
}

fn a_busy_port_shows_before_the_command_starts(host: &Host) {
    rnet(host, &["network", "create", "net1"]).success();
    let _first = member(host, "first", &["-p", "8080:80"], "echo up; sleep 60");
    let second = host.run(&["--net", "net1", "-p", "8080:80"], Root::Busybox, &["echo", "started"]);
    assert!(second.code() == 125 && second.stdout.is_empty(), "{second}");
    assert!(second.stderr.contains("8080") && second.stderr.contains("in use"), "{second}");
}

fn broadcasts_stay_within(host: &Host) {
    for name in ["net1", "net2"] {
        rnet(host, &["network", "create", name]).success();
    }
    let listen = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 99)); \
                  print('up', flush=True); print(s.recvfrom(99), flush=True)";
    let start = |network: &str| {
        let mut listener = host.start_python(&["--net", network], listen, &[]);
        listener.wait_for_output("up\n");
        listener
    };
    let (mut one, mut two, mut elsewhere) = (start("net1"), start("net1"), start("net2"));
    let send = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); \
                s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); s.sendto(b'to all', ('255.255.255.255', 99)); \
                s.sendto(b'to all', ('10.89.0.255', 99))";
    host.python(&["--net", "net1"], send, &[]);
    for listener in [&mut one, &mut two] {
        listener.wait_for_output("(b'to all', ('10.89.0.4'");
    }
    assert!(!elsewhere.has_ended() && !elsewhere.stdout().contains("all"));
}

/// The two ways: another IPv4 address, and another station.
fn nobody_takes_anothers_address(host: &Host) {
    rnet(host, &["network", "create", "net1"]).success();
    let _db = member(host, "db", &[], "echo up; sleep 60");
    let line = "ping -c 1 -W 5 10.89.0.2 >/dev/null && echo own; \
                ip addr add 10.89.0.77/24 dev tap0; ping -c 1 -W 1 -I 10.89.0.77 10.89.0.2 >/dev/null || echo no; \
                ip addr del 10.89.0.77/24 dev tap0; \
                ip link set tap0 down; ip link set tap0 address 52:57:0a:59:00:02; ip link set tap0 up; \
                ping -c 1 -W 1 10.89.0.2 >/dev/null || echo no; ping -c 1 -W 1 10.89.0.1 >/dev/null || echo no; \
                ip link set tap0 down; ip link set tap0 address 52:57:0a:59:00:03; ip link set tap0 up; \
                ping -c 1 -W 5 10.89.0.2 >/dev/null && echo own";
    assert_eq!(host.sh(&["--net", "net1", "--cap-add", "NET_ADMIN"], line), "own\nno\nno\nno\nown\n");
}

fn the_last_one_ends_the_gateway(host: &Host) {
    rnet(host, &["network", "create", "net1"]).success();
    let (mut one, mut two) =
        (member(host, "one", &[], "echo up; cat"), member(host, "two", &[], "echo up; cat"));
    let gateway = gateway_of(host, "net1");
    one.close_stdin();
    assert_eq!(one.wait().code(), 0);
    assert!(is_alive(gateway), "another is left");
    two.close_stdin();
    assert_eq!(two.wait().code(), 0);
    wait_for("the gateway's end", || (!is_alive(gateway)).then_some(()));
    assert_eq!(host.sh(&["--net", "net1"], "echo again"), "again\n");
}

fn a_killed_gateway_is_noticed_and_the_next_one_is_another(host: &Host) {
    rnet(host, &["network", "create", "net1"]).success();
    let mut one = member(host, "one", &[], "echo up; sleep 60");
    host.tool(&["/bin/kill", "-9", &gateway_of(host, "net1").to_string()]).success();
    wait_for("word of it", || one.stderr().contains("has lost the network net1").then_some(()));
    assert!(!one.has_ended(), "it goes on without");
    assert_eq!(host.sh(&["--net", "net1"], "ping -c 1 -W 5 10.89.0.1 >/dev/null && echo up"), "up\n");
}

fn a_killed_container_leaves_nothing(host: &Host) {
    rnet(host, &["network", "create", "net1"]).success();
    let _other = member(host, "other", &[], "echo up; sleep 60");
    let web = member(host, "web", &["-p", "8080:80"], "echo up; sleep 60");
    web.signal(Signal::SIGKILL);
    drop(web);
    wait_for("its place", || (!inspect(host, "net1").contains("\"web\"")).then_some(()));
    let mut web = member(host, "web", &["-p", "8080:80"], "echo up; ip -4 -o addr show tap0; sleep 60");
    web.wait_for_output("10.89.0.3/24");
}

fn addresses_and_names_are_those_that_were_asked_for(host: &Host) {
    rnet(host, &["network", "create", "net1", "--subnet", "192.168.77.0/24"]).success();
    let at = ["--ip", "192.168.77.10", "--network-alias", "pool", "--network-alias", "first"];
    let _one = member(host, "one", &at, "echo up; sleep 60");
    let _two = member(host, "two", &["--network-alias", "pool"], "echo up; sleep 60");
    let line = "nslookup -type=a pool | grep -c Address; nslookup -type=a first | grep 77.10; \
                nslookup 192.168.77.10 | grep name";
    let seen = host.sh(&["--net", "net1"], line);
    assert!(seen.starts_with("3\n") && seen.contains("192.168.77.10\n"), "{seen}");
    assert!(seen.contains("one.net1"), "{seen}");
    let three = host.run(&["--net", "net1", "-h", "one"], Root::Busybox, &["true"]);
    assert!(three.code() == 0 && three.stderr.contains("one is another container's"), "{three}");
    let taken = host.run(&["--net", "net1", "--ip", "192.168.77.10"], Root::Busybox, &["true"]);
    assert!(taken.code() == 125 && taken.stderr.contains("somebody has it"), "{taken}");
}

fn containers_come_and_go_while_they_run(host: &Host) {
    for name in ["net1", "net2"] {
        rnet(host, &["network", "create", name]).success();
    }
    let _db = member(host, "db", &[], "echo up; nc -ll -p 80 -e echo db");
    let mut web = host.start(
        &["--net", "net2", "--name", "web"],
        Root::Busybox,
        &["sh", "-c", "echo up; while read line; do eval \"$line\"; done"],
    );
    web.wait_for_output("up\n");
    rnet(host, &["network", "connect", "net1", "web", "--alias", "shop"]).success();
    web.write("nc -w 5 10.89.0.2 80\n");
    web.wait_for_output("db\n");
    let seen = host.sh(&["--net", "net1"], "ping -c 1 -W 5 shop >/dev/null && echo found");
    assert_eq!(seen, "found\n");
    rnet(host, &["network", "disconnect", "net1", "web"]).success();
    wait_for("the place in net1", || (!inspect(host, "net1").contains("\"web\"")).then_some(()));
    web.write("nc -w 2 10.89.0.2 80 || echo cut\n");
    web.wait_for_output("cut\n");
}

fn twenty_containers_find_each_other(host: &Host) {
    rnet(host, &["network", "create", "net1"]).success();
    let mut all: Vec<Process> =
        (0..20).map(|number| begin(host, &format!("c{number}"), &[], "echo up; cat")).collect();
    all.iter_mut().for_each(|member| member.wait_for_output("up\n"));
    let line = "for n in $(seq 0 19); do ping -c 1 -W 10 c$n >/dev/null && echo found; done";
    assert_eq!(host.sh(&["--net", "net1"], line).matches("found").count(), 20);
    let gateway = gateway_of(host, "net1");
    all.iter_mut().for_each(Process::close_stdin);
    assert!(all.into_iter().all(|member| member.wait().code() == 0));
    wait_for("the gateway's end", || (!is_alive(gateway)).then_some(()));
}

fn networks_are_made_listed_and_removed(host: &Host) {
    assert_eq!(rnet(host, &["network", "create", "net1"]).success(), "net1\n");
    rnet(host, &["network", "create", "net2", "--no-ipv6", "--mtu", "1500"]).success();
    assert_eq!(rnet(host, &["network", "ls", "-q"]).success(), "net1\nnet2\n");
    let table = rnet(host, &["network", "ls"]).success();
    assert!(table.contains("10.89.0.0/24") && table.contains("10.89.1.0/24"), "{table}");
    let busy = member(host, "busy", &[], "echo up; sleep 60");
    for (words, expected) in [
        (&["network", "create", "net1"][..], "exists already"),
        (&["network", "create", "c", "--subnet", "10.89.0.0/25"], "overlaps"),
        (&["network", "create", "host"], "means something else"),
        (&["network", "rm", "nobody"], "no such network"),
        (&["network", "rm", "net1"], "containers are in it: busy"),
        (&["run", "--net", "nobody", "/mnt/rootfs", "true"], "rnet network create nobody"),
    ] {
        let outcome = rnet(host, words);
        assert!(outcome.code() == 125 && outcome.stderr.contains(expected), "{words:?}: {outcome}");
    }
    rnet(host, &["network", "rm", "net2"]).success();
    drop(busy);
    wait_within(PATIENCE, || rnet(host, &["network", "prune"]).success().contains("net1").then_some(()));
    assert_eq!(rnet(host, &["network", "ls", "-q"]).success(), "");
}

fn ports_are_added_at_run_time(host: &Host) {
    rnet(host, &["network", "create", "net1"]).success();
    let _web = member(host, "web", &[], "echo up; nc -ll -p 80 -e echo web");
    let added = rnet(host, &["port", "add", "web", "8080:80"]).success();
    assert!(added.contains("80/tcp -> 0.0.0.0:8080"), "{added}");
    let answer = wait_for("an answer", || read(host.dial((HOST, 8080)).ok()?));
    assert_eq!(answer, "web\n");
    rnet(host, &["port", "rm", "web", "8080:80"]).success();
    assert!(host.dial((HOST, 8080)).is_err());
}

/// A container in `net1` that has said that it is up.
fn member(host: &Host, name: &str, options: &[&str], line: &str) -> Process {
    let mut member = begin(host, name, options, line);
    member.wait_for_output("up\n");
    member
}

fn begin(host: &Host, name: &str, options: &[&str], line: &str) -> Process {
    let options = [&["--rm", "--net", "net1", "--name", name], options].concat();
    host.start(&options, Root::Busybox, &["sh", "-c", line])
}

fn rnet(host: &Host, words: &[&str]) -> Outcome {
    host.start_rnet(words).wait()
}

fn inspect(host: &Host, network: &str) -> String {
    rnet(host, &["network", "inspect", network]).success()
}

/// The process of a network's gateway.
fn gateway_of(host: &Host, network: &str) -> i32 {
    let found = host.tool(&["/usr/bin/pgrep", "-f", &format!("^rnet network serve {network}$")]).success();
    let pids = found.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
    let in_space = |pid: &i32| {
        let mount = |of: &str| std::fs::read_link(Path::new("/proc").join(of).join("ns/mnt")).ok();
        let theirs = mount(&pid.to_string());
        theirs == host.space().within(|| std::fs::read_link("/proc/thread-self/ns/mnt").ok())
    };
    pids.into_iter().find(in_space).expect("a gateway")
}

/// All that a connection says.
fn read(mut stream: std::net::TcpStream) -> Option<String> {
    let mut text = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    std::io::Read::read_to_string(&mut stream, &mut text).ok()?;
    (!text.is_empty()).then_some(text)
}
