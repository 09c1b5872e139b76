//! The command line as its users write it.

use std::path::Path;

use super::*;
use crate::config::{
    Container, ContainersCall, HookStage, IfName, LinkKind, ListShape, LogFormat, MacAddr, Network, Overlay,
    Privileges, RootFs, Target, Transport,
};

#[test]
fn the_main_job_is_understood() {
    let config = config("run -p 8080:8080 ./rootfs nc -l -p 8080");
    assert_eq!(config.container.rootfs, RootFs::Directory("/home/me/rootfs".into()));
    assert_eq!(config.container.command, ["nc", "-l", "-p", "8080"]);
    assert_eq!(config.network.publish.len(), 1);
    assert_eq!(config.network.publish[0].host_port, Some(8080));
    assert_eq!(config.network.mtu, 65520);
    assert_eq!(config.network.ipv4.expect("IPv4").guest.to_string(), "10.0.2.100");
    assert_eq!(config.network.ipv6.map(|plan| plan.guest.to_string()), Some("fd00::100".to_owned()));
    assert_eq!((config.link.kind, config.link.ifname.as_str()), (LinkKind::Auto, "tap0"));
}

#[test]
fn options_end_at_the_root() {
    assert_eq!(command("run / ls -l --mtu 5"), ["ls", "-l", "--mtu", "5"]);
    assert_eq!(command("run --init / --help -p x --version"), ["--help", "-p", "x", "--version"]);
    assert_eq!(command("run -- / ls -q"), ["ls", "-q"]);
    assert_eq!(command("run / -- ls -- x"), ["ls", "--", "x"]);
    assert_eq!(command("run / env -- ls"), ["env", "--", "ls"]);
    assert!(refusal("run --nonsense / ls").contains("--nonsense"));
}

#[test]
fn every_way_to_write_the_hosts_root_is_the_copy() {
    for root in ["/", "//", "/.", "/..", "/./../"] {
        assert_eq!(container(&format!("run {root} true")).rootfs, RootFs::HostCopy);
    }
    assert_eq!(container("run .. true").rootfs, RootFs::Directory("/home/me/..".into()));
    assert_eq!(container("run /srv/./x/ true").rootfs, RootFs::Directory("/srv/x".into()));
}

#[test]
fn without_a_command_a_shell_runs() {
    assert_eq!(command("run /"), ["/usr/bin/fish"]);
    assert_eq!(command("run ./rootfs"), ["/bin/sh"]);
}

#[test]
fn a_directory_gets_dockers_environment() {
    let env = container("run -e A=1 -e A=2 -e EDITOR -e NOTHERE -e HOME=/x ./rootfs true").env;
    let env: Vec<String> =
        env.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect();
    assert_eq!(
        env,
        [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/x",
            "TERM=screen",
            "HOSTNAME=b0b1b2b3b4b5",
            "container=rnet",
            "A=2",
            "EDITOR=vi"
        ]
    );
}

#[test]
fn the_hosts_root_keeps_the_callers_environment_and_name() {
    let container = container("run / true");
    assert_eq!(container.hostname, "workstation");
    assert_eq!(value(&container, "PATH"), Some("/home/me/bin:/bin".into()));
    assert_eq!(value(&container, "HOSTNAME"), Some("workstation".into()));
    assert_eq!(value(&container, "container"), Some("rnet".into()));
}

#[test]
fn overlays_are_made_of_directories() {
    let overlay = |lower: &[&str], kept: Option<&str>| {
        let lower = lower.iter().map(Into::into).collect();
        RootFs::Overlay(Overlay { lower, kept: kept.map(Into::into), owned: Vec::new() })
    };
    assert_eq!(container("run --overlay ./r true").rootfs, overlay(&["/home/me/r"], None));
    assert_eq!(container("run ./r:O true").rootfs, overlay(&["/home/me/r"], None));
    assert_eq!(container("run --overlay=./l /r true").rootfs, overlay(&["/r"], Some("/home/me/l")));
    assert_eq!(
        container("run --lower /b --lower c /a true").rootfs,
        overlay(&["/a", "/b", "/home/me/c"], None)
    );
    for root in ["--overlay /", "/:O"] {
        assert_eq!(container(&format!("run {root} true")).rootfs, RootFs::HostCopy);
    }
    assert!(refusal("run --overlay=./l / true").contains("always a copy"));
    assert!(refusal("run --overlay=/r/l /r true").contains("beside the root filesystem"));
    assert!(refusal("run --overlay= --overlay=x /r true").contains("--overlay"));
}

#[test]
fn mounts_of_every_spelling_come_together_once_each() {
    let words = "run --read-only -v ./x:/v --mount type=bind,src=y,dst=/m --tmpfs /t --mount type=tmpfs,dst=/n / true";
    let container = container(words);
    let sources: Vec<_> = container.volumes.iter().map(|volume| volume.source.as_path()).collect();
    assert_eq!(sources, [Path::new("/home/me/x"), Path::new("/home/me/y")]);
    let targets: Vec<_> = container.tmpfs.iter().map(|tmpfs| tmpfs.target.as_path()).collect();
    assert_eq!(targets, [Path::new("/t"), Path::new("/n")]);
    assert!(container.read_only);
    assert!(refusal("run -v /a:/x --tmpfs /x/ / true").contains("/x"));
}

#[test]
fn short_options_mean_what_docker_means() {
    let config = config("run -it --rm -h web -w /srv -v ./x:/srv:ro -e K=V -q / true");
    let container = &config.container;
    assert_eq!(container.hostname, "web");
    assert_eq!(container.workdir.as_deref(), Some(Path::new("/srv")));
    assert_eq!(container.volumes[0].source, Path::new("/home/me/x"));
    assert!(container.volumes[0].read_only);
    assert_eq!(config.log.level, LogLevel::Error);
}

#[test]
fn verbosity_and_format_reach_the_log() {
    for (words, level) in [
        ("", LogLevel::Warn),
        ("--verbose", LogLevel::Info),
        ("--verbose --verbose --verbose --verbose", LogLevel::Trace),
    ] {
        assert_eq!(config(&format!("run {words} / true")).log.level, level);
    }
    assert_eq!(config("run --log-format json / true").log.format, LogFormat::Json);
    assert!(refusal("run -q --verbose / true").contains("cannot be used with"));
}

#[test]
fn workers_are_one_on_few_cores_and_some_on_many() {
    for (cores, workers) in [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3), (8, 4), (256, 4)] {
        let surroundings = Surroundings { cores, ..surroundings() };
        let Ok(Command::Run(Request { config, .. })) = parse_words("run / true", &surroundings) else {
            panic!("a command");
        };
        assert_eq!((config.link.queues, config.link.queues_given), (workers, false), "{cores} cores");
    }
    let config = config("run --workers 16 / true");
    assert_eq!((config.link.queues, config.link.queues_given), (16, true));
    for wrong in ["0", "17", "-1", "many"] {
        assert!(refusal(&format!("run --workers={wrong} / true")).contains("from 1 to 16"), "{wrong}");
    }
}

#[test]
fn the_guests_mac_is_one_local_station() {
    let mac = config("run / true").link.mac.expect("a random one");
    assert!(!mac.is_group() && mac.0[0] & 2 != 0 && mac != MacAddr::GATEWAY);
    assert_eq!(config("run --mac-address 02:00:00:00:00:01 / true").link.mac.map(|mac| mac.0[5]), Some(1));
}

#[test]
fn mtu_has_limits_and_ipv6_a_higher_one() {
    assert_eq!(network("--mtu 576 --no-ipv6").mtu, 576);
    assert_eq!(network("--mtu 1280").mtu, 1280);
    assert!(network("--no-ipv6").ipv6.is_none());
    assert!(network("--no-ipv4").ipv4.is_none());
    for (words, cause) in [
        ("--mtu 575", "576..=65520"),
        ("--mtu 65521", "'65521'"),
        ("--mtu 1279", "at least 1280"),
        ("--mtu big", "'--mtu <BYTES>'"),
        ("--no-ipv6 --cidr6 fd01::/64", "cannot be used with"),
        ("--no-ipv4 --cidr 10.1.0.0/24", "cannot be used with"),
        ("--no-ipv4 --no-ipv6", "cannot be used with"),
        ("--no-ipv4 --mtu 1279", "at least 1280"),
    ] {
        let text = refusal(&format!("run {words} / true"));
        assert!(text.contains(cause), "{words}: {text}");
    }
}

#[test]
fn the_subnet_moves_unless_it_was_given() {
    let mut surroundings = surroundings();
    surroundings.host_subnets = vec!["10.0.2.0/24".parse().expect("a network")];
    let moved = request("run / true", &surroundings);
    assert_eq!(moved.config.network.ipv4.expect("IPv4").subnet.to_string(), "10.0.3.0/24");
    assert_eq!(moved.notes[0].level, LogLevel::Info);

    let given = request("run --cidr 10.0.0.0/16 / true", &surroundings);
    assert_eq!(given.config.network.ipv4.expect("IPv4").gateway.to_string(), "10.0.0.2");
    assert_eq!(given.notes[0].level, LogLevel::Warn);
    assert!(given.notes[0].text.contains("10.0.2.0/24"), "{:?}", given.notes);
}

#[test]
fn no_port_is_published_twice() {
    for words in [
        "-p 80:80 -p 80:81",
        "-p 127.0.0.1:80:80 -p 80:80",
        "-p 0.0.0.0:80:80 -p 127.0.0.1:80:80",
        "-p 80-90:80-90 -p 85:85",
        "-p [::1]:80:1 -p [::1]:80:2",
    ] {
        let text = refusal(&format!("run {words} / true"));
        assert!(text.contains("already published by") && text.contains("--publish"), "{text}");
    }
    for words in [
        "-p 80:80 -p 80:80/udp",
        "-p 127.0.0.1:80:80 -p 127.0.0.2:80:80 -p [::1]:80:80",
        "-p 0.0.0.0:80:80 -p [::]:80:80",
        "-p 80 -p 80",
    ] {
        assert!(network(words).publish.len() > 1, "{words}");
    }
    assert!(refusal("run -p 1-20000:1-20000 / true").contains("16384"));
}

#[test]
fn a_udp_publish_and_idle_times_are_passed_on() {
    let network = network("-p 53:5353/udp --udp-timeout 60 --udp-dns-timeout 5 --dns 9.9.9.9 --dns ::1");
    assert_eq!(network.publish[0].transport, Transport::Udp);
    assert_eq!(network.timeouts.udp.as_secs(), 60);
    assert_eq!(network.timeouts.udp_dns.as_secs(), 5);
    assert_eq!(network.dns_servers.len(), 2);
    assert!(refusal("run --udp-timeout 0 / true").contains("1..=86400"));
}

#[test]
fn allowed_destinations_are_final_ones() {
    let access = network("--allow-host 127.0.0.1:5432 --allow-host [::1]:80 --host-loopback").host_access;
    assert_eq!((access.allowed.len(), access.loopback), (2, true));
    assert!(refusal("run --allow-host 10.0.2.2:5432 / true").contains("127.0.0.1:5432"));
    assert!(refusal("run --allow-host [fd00::2]:80 / true").contains("[::1]:80"));
}

#[test]
fn mistakes_end_with_125_and_help_with_0() {
    let status = |words: &str| parse_words(words, &surroundings()).map_err(|usage| usage.code()).err();
    for words in ["", "run", "run -p", "run -p x / true", "run -h", "fly", "run --link bus /", "hello x"] {
        assert_eq!(status(words), Some(125), "{words}");
    }
    for words in ["--help", "-h", "--version", "run --help", "hello --help"] {
        assert_eq!(status(words), Some(0), "{words}");
    }
    assert!(refusal("run --help").contains("rnet run -p 8080:8080 ./rootfs nc -l -p 8080"));
}

#[test]
fn attach_takes_one_target_and_the_options_of_run() {
    let attach = |words: &str| match parse_words(&format!("attach {words}"), &surroundings()) {
        Ok(Command::Attach(request)) => *request.config,
        other => panic!("{words}: {other:?}"),
    };
    assert_eq!(attach("4711").target, Target::Process { pid: 4711, userns: None });
    let path = attach("--netns /proc/self/fd/7 --userns /proc/9/ns/user -p 8080:80 --mtu 1500 --name box");
    let userns = Some("/proc/9/ns/user".into());
    assert_eq!(path.target, Target::Path { netns: "/proc/self/fd/7".into(), userns });
    assert_eq!((path.network.publish.len(), path.network.mtu, path.name.as_deref()), (1, 1500, Some("box")));
    assert_eq!(attach("--tap-fd 5").target, Target::Tap { fd: 5 });
    let bwrap = attach("--bwrap-info-fd 3 --ready-fd 4 --exit-fd 5 --pid-file pid --detach");
    assert_eq!(bwrap.target, Target::Bubblewrap { info_fd: 3 });
    let lifecycle = bwrap.lifecycle;
    assert_eq!((lifecycle.ready_fd, lifecycle.exit_fd, lifecycle.detach), (Some(4), Some(5), true));
    assert_eq!(lifecycle.pid_file, Some("/home/me/pid".into()));
}

#[test]
fn attach_needs_exactly_one_target() {
    for (words, cause) in [
        ("", "required"),
        ("1 --tap-fd 3", "cannot be used with"),
        ("1 --netns /x", "cannot be used with"),
        ("0", "invalid value '0'"),
        ("self", "invalid value 'self'"),
        ("--tap-fd -1", "'-1'"),
        ("--tap-fd 3 --userns /x", "cannot be used with"),
        ("1 --name ../x", "with a letter or digit first"),
        ("1 2", "unexpected argument"),
    ] {
        let text = refusal(&format!("attach {words}"));
        assert!(text.contains(cause), "{words}: {text}");
    }
}

#[test]
fn outbound_is_an_address_or_an_interface_once_for_a_family() {
    let outbound = network("--outbound 192.0.2.1 --outbound 2001:db8::1 --outbound eth0").outbound;
    assert_eq!(outbound.ipv4.address, Some("192.0.2.1".parse().expect("an address")));
    assert_eq!(outbound.ipv6.address, Some("2001:db8::1".parse().expect("an address")));
    assert_eq!(outbound.ipv6.interface, IfName::new("eth0"));
    for options in ["192.0.2.1 --outbound 192.0.2.2", "eth0 --outbound eth1"] {
        assert!(refusal(&format!("run --outbound {options} / true")).contains("twice"), "{options}");
    }
    for value in ["0.0.0.0", "ff02::1", "a/b", "longer-than-any-name"] {
        assert!(refusal(&format!("run --outbound {value} / true")).contains("invalid value"), "{value}");
    }
}

#[test]
fn port_asks_about_the_same_ports_as_publish() {
    let ask = |words: &str| match parse_words(words, &surroundings()) {
        Ok(Command::Ask(question)) => question,
        other => panic!("{words}: {other:?}"),
    };
    assert_eq!(ask("port ls box").topic, Topic::Ports);
    let add = ask("port add 4711 8080-8081:80-81 53/udp --json");
    let Topic::Publish(ports) = add.topic else { panic!("{add:?}") };
    assert_eq!(ports[..2], network("-p 8080-8081:80-81").publish);
    assert_eq!((ports.len(), add.network.as_str(), add.json), (3, "4711", true));
    assert!(matches!(ask("port rm box 80:80").topic, Topic::Unpublish(_)));
    assert_eq!(ask("flows box").topic, Topic::Flows);
    assert!(refusal("port add box").contains("required"));
    assert!(refusal("port ls ..").contains("with a letter or digit first"));
}

#[test]
fn dockers_other_options_are_refused_with_what_stands_in_for_them() {
    for (words, word) in [
        ("-a stdout", "rnet logs"),
        ("-dl x=y", "--name"),
        ("--cidfile x", "--name"),
        ("--env-file=x", "--env NAME=VALUE"),
        ("--group-add 5", "/etc/group"),
        ("--blkio-weight 500", "--io-weight"),
    ] {
        let text = refusal(&format!("run {words} ./rootfs true"));
        assert!(text.contains(word) && !text.contains("-- -"), "{words}: {text}");
        assert!(!text.contains("similar"), "{words}: {text}");
    }
    assert!(refusal("run --publsh 80:80 / true").contains("'--publish'"));
}

#[test]
fn containers_are_confined_unless_told_otherwise() {
    assert_eq!(container("run / true").privileges, Privileges::default());
    assert_eq!(container("run --privileged / true").privileges, Privileges::unconfined());
}

#[test]
fn what_is_kept_of_a_container_follows_from_its_name_and_place() {
    for (options, name, removed) in [
        ("", None, true),
        ("--name box", Some("box"), false),
        ("--name box --rm", Some("box"), true),
        ("-d", Some("b0b1b2b3b4b5"), false),
        ("-d --rm", Some("b0b1b2b3b4b5"), true),
        ("-dit --name box", Some("box"), false),
    ] {
        let config = config(&format!("run {options} ./rootfs true"));
        assert_eq!((config.name.as_deref(), config.life.remove), (name, removed), "{options}");
        assert_eq!((config.life.id.len(), &config.container.hostname[..]), (64, "b0b1b2b3b4b5"));
    }
    let life = config("run -di --stop-signal INT --stop-timeout 3 --pid-file p --log-max 1m / true").life;
    assert!(life.keeps_stdin && life.detach);
    assert_eq!((life.stop_signal, life.stop_timeout.as_secs(), life.max_log_bytes), (2, 3, 1 << 20));
    assert_eq!(life.pid_file, Some("/home/me/p".into()));
    assert!(refusal("run --stop-signal NO / true").contains("'NO' is no signal"));
}

#[test]
fn containers_are_called_by_name_or_id() {
    let call = |words: &str| match parse_words(words, &surroundings()) {
        Ok(Command::Containers(call)) => call,
        other => panic!("{words}: {other:?}"),
    };
    let names = vec!["box".to_owned(), "0f".repeat(32)];
    let words = format!("box {}", names[1]);
    assert_eq!(call(&format!("wait {words}")), ContainersCall::Wait { names: names.clone() });
    let patience = Some(std::time::Duration::from_secs(3));
    assert_eq!(call(&format!("stop -t 3 {words}")), ContainersCall::Stop { names, patience });
    assert_eq!(call("ps -aq"), ContainersCall::List { all: true, shape: ListShape::Ids });
    assert_eq!(call("kill -s hup a"), ContainersCall::Kill { names: vec!["a".to_owned()], signal: 1 });
    for words in ["stop", "rm ../x", "logs a b", "kill -s 99 a", "ps --json -q"] {
        assert!(refusal(words).starts_with("error: "), "{words}");
    }
}

#[test]
fn container_runtimes_call_in_their_own_ways() {
    let call = |words: &str| match parse_words(words, &surroundings()) {
        Ok(Command::OciHook(call)) => Some((call.stage, call.prefix)),
        _ => None,
    };
    assert_eq!(call("oci-hook"), Some((None, "io.rnet.".to_owned())));
    assert_eq!(call("oci-hook prestart"), Some((Some(HookStage::CreateRuntime), "io.rnet.".to_owned())));
    assert_eq!(call("oci-hook --prefix a. poststop"), Some((Some(HookStage::Poststop), "a.".to_owned())));
    assert!(refusal("oci-hook poststart").contains("createContainer"));
    assert!(refusal("oci-hook --prefix=").contains("--prefix"));
    assert!(matches!(parse_words("cni", &surroundings()), Ok(Command::Cni)));
    let args = ["/opt/cni/bin/rnet-cni", "--anything"].map(OsString::from);
    assert!(matches!(parse(args.into_iter(), &surroundings()), Ok(Command::Cni)));
}

#[test]
fn hello_needs_nothing() {
    let Ok(Command::Hello(hello)) = parse_words("hello --link packet", &surroundings()) else {
        panic!("hello is a command");
    };
    assert_eq!(hello.config.container.rootfs, RootFs::Empty);
    assert_eq!(hello.config.link.kind, LinkKind::Packet);
}

pub(super) fn surroundings() -> Surroundings {
    let env =
        [("PATH", "/home/me/bin:/bin"), ("SHELL", "/usr/bin/fish"), ("TERM", "screen"), ("EDITOR", "vi")];
    Surroundings {
        env: env.map(|(name, value)| (name.into(), value.into())).into(),
        cwd: "/home/me".into(),
        hostname: "workstation".to_owned(),
        stdin_is_tty: true,
        cores: 2,
        host_subnets: vec!["0.0.0.0/0".parse().expect("a network")],
        random: std::array::from_fn(|at| 0xa0 + at as u8),
    }
}

fn parse_words(words: &str, surroundings: &Surroundings) -> Result<Command, Usage> {
    let args = std::iter::once("rnet").chain(words.split_whitespace());
    parse(args.map(OsString::from), surroundings)
}

fn request(words: &str, surroundings: &Surroundings) -> Request {
    match parse_words(words, surroundings) {
        Ok(Command::Run(request)) => request,
        other => panic!("{words}: {other:?}"),
    }
}

fn config(words: &str) -> Config {
    *request(words, &surroundings()).config
}

fn container(words: &str) -> Container {
    config(words).container
}

fn command(words: &str) -> Vec<OsString> {
    container(words).command
}

fn network(options: &str) -> Network {
    config(&format!("run {options} / true")).network
}

fn refusal(words: &str) -> String {
    match parse_words(words, &surroundings()) {
        Err(usage) => usage.to_string(),
        Ok(command) => panic!("{words}: {command:?}"),
    }
}

fn value(container: &Container, name: &str) -> Option<OsString> {
    let found = container.env.iter().find(|(other, _)| other == name);
    found.map(|(_, value)| value.clone())
}

#[test]
fn another_programs_name_is_the_files_or_the_first_word() {
    let asks = |line: &str| {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        (chooses_addresses(&args), parse(args.into_iter(), &surroundings()))
    };
    for line in ["/x/slirp4netns 7", "slirp4netns -c 7 tap0", "rnet slirp4netns 7", "/x/rnet slirp4netns 7"] {
        assert!(matches!(asks(line), (false, Ok(Command::Slirp4netns(_)))), "{line}");
    }
    assert!(matches!(asks("rnet attach 7"), (true, Ok(Command::Attach(_)))));
    assert!(asks("/x/slirp4netns-1 7").1.is_err());
}
