//! `rnet attach`: namespaces that others have made, and everything that ends their network.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use nix::sys::signal::Signal;

use crate::lab::{HOST, Host, Link, REMOTE, REMOTE6, is_real_root, skip};
use crate::process::{Process, is_alive, wait_for};
use crate::services::{echo, tcp};

const CONNECT: &str = include_str!("../guest/connect.py");
const SERVE: &str = include_str!("../guest/serve.py");
const TAP_FD: &str = include_str!("../guest/tap_fd.py");
const BWRAP: &str = "/usr/bin/bwrap";

over_links![
    a_process_gets_a_network,
    a_published_port_reaches_the_process,
    loopback_clients_appear_as_the_guest_itself,
    detached_once_all_is_there,
];
over_any_link![
    a_descriptor_names_the_namespace,
    its_end_is_that_of_its_path,
    its_end_is_that_of_its_exit_descriptor,
    signals_end_it_well,
    bubblewrap_tells_its_process,
    an_open_tap_is_served,
    a_namespace_with_a_network_is_left_alone,
    mistakes_are_named,
    a_closed_namespace_names_its_owner,
    a_random_port_is_printed,
    ports_come_and_go,
    ports_that_are_added_are_spliced,
    a_conflict_leaves_all_as_it_was,
    every_worker_serves_what_is_added,
    established_connections_outlive_their_port,
    run_can_be_asked_too,
    traffic_leaves_from_the_given_address,
];

fn a_process_gets_a_network(host: &Host) {
    let services = [
        tcp(host.remote(), (Ipv4Addr::UNSPECIFIED, 7000), echo),
        tcp(host.remote(), (Ipv6Addr::UNSPECIFIED, 7000), echo),
    ];
    let mut guest = Guest::start(host, &["/usr/bin/python3", "-c", CONNECT, "5", "198.51.100.9", "7000"]);
    let rnet = attach(host, &[&guest.pid()]);
    let seen = guest.go();
    assert!(seen.contains(" connected "), "{seen}");
    assert_eq!(services.map(|service| service.met()), [1, 0]);
    assert_eq!(rnet.wait().code(), 0, "ends with its process");

    let service = tcp(host.remote(), (Ipv6Addr::UNSPECIFIED, 7001), echo);
    let mut guest =
        Guest::start(host, &["/usr/bin/python3", "-c", CONNECT, "5", &REMOTE6.to_string(), "7001"]);
    let _rnet = attach(host, &[&guest.pid()]);
    assert!(guest.go().contains(" connected "));
    assert_eq!(service.met(), 1);
}

fn a_published_port_reaches_the_process(host: &Host) {
    let (mut guest, pid) = serving(host);
    let _rnet = attach(host, &["-p", "8080:80", &pid]);
    host.dial((HOST, 8080)).expect("published");
    guest.wait_for_output("client");
    host.dial_from_remote((HOST, 8080)).expect("published");
    guest.wait_for_output(&REMOTE.to_string());
}

fn loopback_clients_appear_as_the_guest_itself(host: &Host) {
    let spliced = ["client 10.0.2.100\n", "client fd00::100\n"];
    let over_the_link = ["client 10.0.2.2\n", "client fd00::2\n"];
    for (options, appear_as) in [(&[][..], spliced), (&["--no-splice"][..], over_the_link)] {
        let (mut guest, pid) = serving(host);
        let _rnet = attach(host, &[options, &["-p", "8080:80", pid.as_str()]].concat());
        let loopbacks = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        for (client, appears_as) in loopbacks.into_iter().zip(appear_as) {
            host.dial((client, 8080)).expect("published");
            guest.wait_for_output(appears_as);
        }
    }
}

fn a_random_port_is_printed(host: &Host) {
    let (_guest, pid) = serving(host);
    let rnet = attach(host, &["-p", "127.0.0.1::80", &pid]);
    let printed = wait_for("the port", || {
        let port = rnet.stderr().strip_prefix("80/tcp -> 127.0.0.1:")?.trim().parse::<u16>();
        port.ok()
    });
    host.dial((Ipv4Addr::LOCALHOST, printed)).expect("published");
}

fn detached_once_all_is_there(host: &Host) {
    let (_guest, pid) = serving(host);
    // The substitution ends when nobody holds its end any more.
    let script = "said=$(\"$@\" 2>&1) && echo \"[$said]\" && cat /mnt/home/pid && ip=$(nsenter -t $PID -U -n \
                  --preserve-credentials ip -o addr show tap0) && echo \"$ip\"";
    let seen = shell(
        host,
        script,
        &[("PID", &pid)],
        &["-p", "8080:80", "--detach", "--pid-file", "/mnt/home/pid", "-q", &pid],
    );
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "[]", "nothing is said");
    assert!(seen.contains("10.0.2.100/24"), "{seen}");
    let background: i32 = lines[1].parse().expect("a pid");
    assert!(is_alive(background));
    host.dial((HOST, 8080)).expect("published");
    let null = |fd: i32| std::fs::read_link(format!("/proc/{background}/fd/{fd}"));
    for fd in 0..3 {
        assert_eq!(null(fd).ok().as_deref(), Some(Path::new("/dev/null")), "{fd}");
    }
    drop(_guest);
    wait_for("the end of the background process", || (!is_alive(background)).then_some(()));
}

fn a_descriptor_names_the_namespace(host: &Host) {
    let (mut guest, pid) = serving(host);
    let script = "exec 5</proc/$PID/ns/net; exec \"$@\" 3>&1 1>&2";
    let mut rnet = shell_start(
        host,
        script,
        &[("PID", &pid)],
        &["-p", "8080:80", "--ready-fd", "3", "--netns", "/proc/self/fd/5"],
    );
    rnet.wait_for_output("1");
    assert_eq!(rnet.stdout(), "1", "one byte");
    host.dial((Ipv4Addr::LOCALHOST, 8080)).expect("published");
    guest.wait_for_output("client 10.0.2.100\n");
}

fn its_end_is_that_of_its_path(host: &Host) {
    // As podman does it: in a user namespace of its own, a file that is the namespace.
    let script = "set -e; cd /mnt/home; touch box
        unshare --net sh -c 'mount --bind /proc/self/ns/net box'
        /mnt/rnet attach -p 8080:80 --detach --pid-file pid --netns box
        cat pid; read go; umount box; rm box; read go";
    let mut podman = host.start_as_user(&["unshare", "-Ur", "--mount", "sh", "-c", script]);
    let pid = wait_for("the pid", || podman.stdout().trim().parse::<i32>().ok());
    // Nobody in there would take a connection, but it is accepted.
    let listens =
        || !matches!(host.dial((HOST, 8080)), Err(error) if error.kind() == ErrorKind::ConnectionRefused);
    assert!(listens());
    assert!(is_alive(pid));
    podman.write("\n");
    wait_for("the end of rnet", || (!is_alive(pid)).then_some(()));
    assert!(!listens());
}

fn its_end_is_that_of_its_exit_descriptor(host: &Host) {
    let (_guest, pid) = serving(host);
    let script = "mkfifo exit; \"$@\" 3>&1 1>&2 4<exit & exec 5>exit; echo written >&5; read go; exec 5>&-; wait $!; \
                  echo ended $?";
    let mut rnet = shell_start(host, script, &[], &["--ready-fd", "3", "--exit-fd", "4", &pid]);
    rnet.wait_for_output("1");
    rnet.write("\n");
    assert_eq!(rnet.wait().success(), "1ended 0\n");
}

fn signals_end_it_well(host: &Host) {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (_guest, pid) = serving(host);
        let rnet = attach(host, &["-p", "8080:80", &pid]);
        rnet.signal(signal);
        assert_eq!(rnet.wait().code(), 0);
        host.dial((HOST, 8080)).expect_err("closed");
    }
}

fn bubblewrap_tells_its_process(host: &Host) {
    if !Path::new(BWRAP).exists() {
        return skip("bubblewrap is missing; tests/run installs it as root");
    }
    let service = tcp(host.remote(), (Ipv4Addr::UNSPECIFIED, 7000), echo);
    let script = "mkfifo info block; \"$@\" 6<info 3>&1 1>&2 & exec 7>info 8<>block; bwrap --bind / / --dev /dev --proc /proc \
                  --unshare-all --info-fd 7 --block-fd 8 /usr/bin/python3 -c \"$GUEST\" 5 198.51.100.9 7000 & \
                  read go; echo >&8; wait";
    let mut both =
        shell_start(host, script, &[("GUEST", CONNECT)], &["--ready-fd", "3", "--bwrap-info-fd", "6"]);
    both.wait_for_output("1");
    both.write("\n");
    both.wait_for_output("198.51.100.9 7000 connected");
    assert_eq!(service.met(), 1);
}

fn an_open_tap_is_served(host: &Host) {
    if host.link() == Link::Packet || !Path::new("/dev/net/tun").exists() {
        return skip("no /dev/net/tun");
    }
    let service = tcp(host.remote(), (Ipv4Addr::UNSPECIFIED, 7000), echo);
    for (header, count) in [("plain", 1), ("vnet", 2)] {
        let mut tap =
            host.start_as_user(&["/usr/bin/python3", "-c", TAP_FD, header, "/mnt/rnet", "198.51.100.9"]);
        tap.wait_for_output("echoed 200000");
        assert_eq!(service.met(), count, "{header}");
    }
}

fn a_namespace_with_a_network_is_left_alone(host: &Host) {
    let (_guest, pid) = serving(host);
    let _rnet = attach(host, &["-p", "8080:80", &pid]);
    for (options, cause) in
        [(&[][..], "has an interface of that name"), (&["--ifname", "tap1"], "default route")]
    {
        let again = host.start_attach(&[options, &[&*pid]].concat()).wait();
        assert_eq!(again.code(), 125, "{again}");
        assert!(again.stderr.contains(cause) && again.stderr.contains("hint"), "{again}");
    }
    host.dial((HOST, 8080)).expect("as before");
}

fn mistakes_are_named(host: &Host) {
    let own = host.start_as_user(&["sleep", "1000"]);
    let own = own.pid().to_string();
    for (options, cause) in [
        (&["2147483647"][..], "there is no such process"),
        (&["1"], "uid 0"),
        (&[&*own], "rnet's own network namespace"),
        (&["--netns", "/mnt/rnet"], "not a network namespace"),
        (&["--netns", "/mnt/none"], "No such file"),
        (&["--netns", "/proc/self/ns/uts"], "not a network namespace"),
        (&["--tap-fd", "9"], "it is not open"),
        (&["--tap-fd", "0"], "TUNSETIFF"),
        (&["--ready-fd", "9", "1"], "it is not open"),
        (&["--ready-fd", "2", "--exit-fd", "2", "1"], "given twice"),
    ] {
        let outcome = host.start_attach(options).wait();
        assert_eq!(outcome.code(), 125, "{options:?}: {outcome}");
        assert!(outcome.stderr.contains(cause), "{options:?}: {outcome}");
    }
    let detached = host.start_attach(&["--detach", "2147483647"]).wait();
    assert_eq!(detached.code(), 125, "an error of the background is heard of: {detached}");
    assert!(detached.stderr.contains("no such process"), "{detached}");
}

fn a_closed_namespace_names_its_owner(host: &Host) {
    let script = "touch /mnt/ns && unshare --net mount --bind /proc/self/ns/net /mnt/ns";
    host.tool(&["/bin/sh", "-c", script]).success();
    let refused = host.start_attach(&["--netns", "/mnt/ns"]).wait();
    assert_eq!(refused.code(), 125, "{refused}");
    let cause = "cannot enter the network namespace /mnt/ns: Operation not permitted";
    assert!(refused.stderr.contains(cause), "{refused}");
    if is_real_root() {
        let hint = "hint: its user namespace belongs to the user with uid 0, and rnet runs with uid";
        assert!(refused.stderr.contains(hint), "{refused}");
    }

    let (_guest, pid) = serving(host);
    let elsewhere = ["unshare", "-Ur", "/mnt/rnet", "attach", &pid];
    let refused = host.start_as_user(&elsewhere).wait();
    assert_eq!(refused.code(), 125, "{refused}");
    assert!(
        refused.stderr.contains("hint: it is in a user namespace that rnet has no rights over"),
        "{refused}"
    );
}

fn ports_come_and_go(host: &Host) {
    let (_guest, pid) = serving(host);
    let _rnet = attach(host, &["-p", "127.0.0.1:8080:80", &pid]);
    assert_eq!(port(host, "add", &pid, &["8081:80"]), "80/tcp -> 0.0.0.0:8081\n80/tcp -> [::]:8081\n");
    assert_eq!(port(host, "add", &pid, &["8081:80"]), port(host, "add", &pid, &["8081:80"]), "a no-op");
    host.dial_from_remote((HOST, 8081)).expect("published");
    let listed = port(host, "ls", &pid, &[]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    for _ in 0..3 {
        assert_eq!(port(host, "rm", &pid, &["8081:80"]), "");
        host.dial((HOST, 8081)).expect_err("closed");
        port(host, "add", &pid, &["8081:80"]);
        host.dial((HOST, 8081)).expect("published");
    }
    assert_eq!(port(host, "rm", &pid, &["8081:80", "127.0.0.1:8080:80"]), "");
    assert_eq!(port(host, "ls", &pid, &[]), "");
    let missing = host.start_rnet(&["port", "rm", &pid, "8081:80"]).wait();
    assert!(missing.code() == 125 && missing.stderr.contains("not published"), "{missing}");
}

fn ports_that_are_added_are_spliced(host: &Host) {
    let (mut guest, pid) = serving(host);
    let _rnet = attach(host, &[&pid]);
    port(host, "add", &pid, &["8080:80"]);
    host.dial((Ipv4Addr::LOCALHOST, 8080)).expect("published");
    guest.wait_for_output("client 10.0.2.100\n");
}

fn a_conflict_leaves_all_as_it_was(host: &Host) {
    let (_guest, pid) = serving(host);
    let _rnet = attach(host, &[&pid]);
    let taken = tcp(host.space(), (HOST, 8081), echo);
    let refused = host.start_rnet(&["port", "add", &pid, "8080-8082:80-82"]).wait();
    assert_eq!(refused.code(), 125, "{refused}");
    assert!(refused.stderr.contains(":8081/tcp: Address already in use"), "{refused}");
    assert_eq!(port(host, "ls", &pid, &[]), "");
    drop(taken);
    wait_for("a free port", || {
        host.start_rnet(&["port", "add", &pid, "8080-8082:80-82"]).wait().status.success().then_some(())
    });
}

fn every_worker_serves_what_is_added(host: &Host) {
    use std::io::{Read, Write};
    let (_guest, pid) = serving(host);
    let _rnet = attach(host, &["--workers", "4", &pid]);
    let specs: Vec<String> = (8080..8088).map(|port| format!("{port}:80")).collect();
    let ports: Vec<&str> = specs.iter().map(String::as_str).chain(["8088:80/udp"]).collect();
    for round in 0..3 {
        port(host, "add", &pid, &ports);
        let clients: Vec<_> = (8080..8088).map(|port| host.dial((HOST, port)).expect("published")).collect();
        for mut client in &clients {
            client.write_all(b"a").and_then(|()| client.read_exact(&mut [0])).expect("an echo");
        }
        let flows = host.start_rnet(&["flows", &pid]).wait().success();
        assert_eq!(flows.matches("10.0.2.100:80").count(), 8, "round {round}: {flows}");
        port(host, "rm", &pid, &ports);
        for port in 8080..8088 {
            host.dial((HOST, port)).expect_err("closed");
        }
        drop(clients);
        wait_for("the end of the connections", || {
            host.start_rnet(&["flows", &pid]).wait().success().starts_with("0 flows").then_some(())
        });
    }
}

fn established_connections_outlive_their_port(host: &Host) {
    use std::io::{Read, Write};
    let (_guest, pid) = serving(host);
    let _rnet = attach(host, &["-p", "8080:80", &pid]);
    let mut client = host.dial((HOST, 8080)).expect("published");
    client.write_all(b"a").and_then(|()| client.read_exact(&mut [0])).expect("an echo");
    port(host, "rm", &pid, &["8080:80"]);
    host.dial((HOST, 8080)).expect_err("closed");
    client.write_all(b"b").and_then(|()| client.read_exact(&mut [0])).expect("an echo");
    let flows = host.start_rnet(&["flows", &pid]).wait().success();
    assert!(
        flows.contains("tcp") && flows.contains("10.0.2.100:80") && flows.contains("2 bytes out"),
        "{flows}"
    );
}

fn run_can_be_asked_too(host: &Host) {
    let mut guest = host.start_python(&["--name", "box", "--rm"], SERVE, &["80"]);
    guest.wait_for_output("ready");
    port(host, "add", "box", &["8080:80"]);
    host.dial((HOST, 8080)).expect("published");
    let again = host.start_python(&["--name", "box", "--rm"], SERVE, &["80"]).wait();
    assert!(again.code() == 125 && again.stderr.contains("a running network has it"), "{again}");
    drop(guest);
    let mut again = host.start_python(&["--name", "box", "--rm"], SERVE, &["80"]);
    again.wait_for_output("ready");
}

fn traffic_leaves_from_the_given_address(host: &Host) {
    crate::lab::ip_batch(host.space(), "addr add 192.0.2.77/24 dev eth0\n").expect("an address");
    let met = tcp(host.remote(), (REMOTE, 7000), |mut stream| {
        use std::io::Write;
        let peer = stream.peer_addr().map(|peer| peer.ip().to_string());
        let _ = stream.write_all(peer.unwrap_or_default().as_bytes());
    });
    let seen = host.sh(&["--outbound", "192.0.2.77"], "nc 198.51.100.9 7000 </dev/null");
    assert_eq!(seen, "192.0.2.77");
    let local = tcp(host.space(), (Ipv4Addr::LOCALHOST, 7000), echo);
    host.sh(&["--outbound", "192.0.2.77", "--host-loopback"], "echo x | nc 10.0.2.2 7000");
    assert_eq!((met.met(), local.met()), (1, 1));
}

/// A process with a user and a network namespace of its own that waits to be let go.
struct Guest(Process);

impl Guest {
    fn start(host: &Host, command: &[&str]) -> Self {
        let wait = ["unshare", "-Urn", "sh", "-c", "echo waits; read go; exec \"$@\"", "sh"];
        let mut guest = host.start_as_user(&[&wait, command].concat());
        guest.wait_for_output("waits");
        Self(guest)
    }

    fn pid(&self) -> String {
        self.0.pid().to_string()
    }

    /// Lets it go; what it has written at its end.
    fn go(&mut self) -> String {
        self.0.write("\n");
        wait_for("the guest's end", || self.0.has_ended().then_some(()));
        wait_for("its last words", || Some(self.0.stdout()).filter(|seen| seen.lines().count() > 1))
    }
}

/// An echo server at port 80 of namespaces of its own.
fn serving(host: &Host) -> (Process, String) {
    let mut guest = host.start_as_user(&["unshare", "-Urn", "/usr/bin/python3", "-c", SERVE, "80"]);
    guest.wait_for_output("ready");
    let pid = guest.pid().to_string();
    (guest, pid)
}

/// Starts `rnet attach OPTIONS` and waits until it says that it is ready.
fn attach(host: &Host, options: &[&str]) -> Process {
    let options = [&["--ready-fd", "3"], options].concat();
    let mut rnet = shell_start(host, "exec \"$@\" 3>&1 1>&2", &[], &options);
    rnet.wait_for_output("1");
    rnet
}

/// Starts a shell script with `rnet attach OPTIONS` as its arguments.
fn shell_start(host: &Host, script: &str, env: &[(&str, &str)], options: &[&str]) -> Process {
    let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut argv = vec!["env"];
    argv.extend(env.iter().map(String::as_str));
    argv.extend(["sh", "-c", script, "sh"]);
    argv.extend(host.attach_argv(options));
    host.start_as_user(&argv)
}

fn shell(host: &Host, script: &str, env: &[(&str, &str)], options: &[&str]) -> String {
    shell_start(host, script, env, options).wait().success()
}

/// What `rnet port VERB NETWORK PORTS` prints.
fn port(host: &Host, verb: &str, network: &str, ports: &[&str]) -> String {
    host.start_rnet(&[&["port", verb, network], ports].concat()).wait().success()
}
