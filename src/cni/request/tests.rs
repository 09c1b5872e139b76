//! What runtimes ask for, and what they are told when it makes no sense.

use serde_json::{Value, json};

use super::*;

#[test]
fn add_carries_options_ports_and_addresses() {
    let configuration = configured(json!({
        "mtu": 1500,
        "options": {"cidr": "10.5.0.0/24", "allow-host": ["127.0.0.1:5432", "[::1]:5432"], "host-loopback": true},
        "dns": {"nameservers": ["192.0.2.53", "192.0.2.54"], "search": ["test"]},
        "capabilities": {"portMappings": true},
        "runtimeConfig": {
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 53, "containerPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
                {"hostPort": 8443, "containerPort": 443, "hostIP": "::1"},
                {"hostPort": 0, "containerPort": 9, "protocol": "sctp"},
            ],
            "ips": ["10.5.0.7/24", "fd00::7"],
            "mac": "52:56:00:00:00:09",
            "bandwidth": {"ingressRate": 1000, "ingressBurst": 9000, "egressRate": 0, "egressBurst": 0},
        },
    }));
    let request = understood("ADD", &configuration).expect("no mistake");
    let Request::Add { attachment, netns, wish, previous } = request else { panic!("not ADD") };
    let expected = ("net".to_owned(), "box".to_owned(), "eth0".to_owned());
    assert_eq!((attachment.network, attachment.container, attachment.ifname), expected);
    assert_eq!((netns.to_str(), previous), (Some("/run/netns/box"), None));
    let mut options: Vec<String> =
        wish.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
    options.sort();
    assert_eq!(
        options,
        [
            "allow-host=127.0.0.1:5432,[::1]:5432",
            "cidr=10.5.0.0/24",
            "dns=192.0.2.53,192.0.2.54",
            "host-loopback=true",
            "mac-address=52:56:00:00:00:09",
            "mtu=1500",
            "publish=127.0.0.1:53:53/UDP",
            "publish=8080:80/tcp",
            "publish=[::1]:8443:443/tcp",
        ]
    );
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    assert_eq!(wish.ips, [(ip("10.5.0.7"), Some(24)), (ip("fd00::7"), None)]);
    assert_eq!(wish.dns.search, ["test"]);
    assert_eq!(wish.rates, Rates { to_guest: Rate::new(1000, 9000), from_guest: None });
}

#[test]
fn extra_arguments_count() {
    let arguments = [("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.0.2.9;MAC=52:56:00:00:00:09")];
    let (_, request) = parse(&environment("ADD", &arguments), configured(json!({})).to_string().as_bytes());
    let Ok(Request::Add { wish, .. }) = request else { panic!("not ADD") };
    assert_eq!(wish.ips, [("10.0.2.9".parse().expect("an address"), None)]);
    assert_eq!(wish.options, [("mac-address".to_owned(), "52:56:00:00:00:09".to_owned())]);
    let configuration = configured(json!({"args": {"cni": {"ips": ["10.0.2.8"]}, "labels": {}}}));
    let Ok(Request::Add { wish, .. }) = understood("ADD", &configuration) else { panic!("not ADD") };
    assert_eq!(wish.ips, [("10.0.2.8".parse().expect("an address"), None)]);
}

#[test]
fn del_asks_for_little_and_forgives_the_rest() {
    let configuration = configured(json!({"ipam": {"type": "host-local"}, "nonsense": 1}));
    let without_netns = [("CNI_NETNS", "")];
    let (_, request) = parse(&environment("DEL", &without_netns), configuration.to_string().as_bytes());
    assert!(matches!(request, Ok(Request::Del { attachment }) if attachment.container == "box"));
}

#[test]
fn gc_status_and_check_are_understood() {
    let valid = json!([{"containerID": "a", "ifname": "eth0"}]);
    let request = understood("GC", &configured(json!({"cni.dev/valid-attachments": valid})));
    let Ok(Request::Gc { network, valid }) = request else { panic!("not GC: {request:?}") };
    assert_eq!(
        (network.as_str(), valid[0].container.as_str(), valid[0].ifname.as_str()),
        ("net", "a", "eth0")
    );
    assert_eq!(understood("STATUS", &configured(json!({}))), Ok(Request::Status));
    let request = understood("CHECK", &configured(json!({"prevResult": {"ips": []}})));
    assert!(matches!(request, Ok(Request::Check { previous, .. }) if previous == json!({"ips": []})));
}

#[test]
fn versions_are_told_to_whoever_asks() {
    for input in [r#"{"cniVersion": "1.0.0"}"#, r#"{"cniVersion": "9.0.0"}"#, "{}", ""] {
        let (version, request) = parse(&environment("VERSION", &[]), input.as_bytes());
        assert_eq!(request, Ok(Request::Version), "{input}");
        assert_eq!(version == Version::V1_0, input.contains("1.0.0"), "{input}");
    }
}

#[test]
fn mistakes_in_the_environment_are_code_4() {
    for (command, variable, value, told) in [
        ("ADD", "CNI_COMMAND", "", "CNI_COMMAND is missing"),
        ("WALK", "CNI_COMMAND", "WALK", "CNI_COMMAND is 'WALK'"),
        ("ADD", "CNI_CONTAINERID", "", "CNI_CONTAINERID is missing"),
        ("DEL", "CNI_CONTAINERID", "-a", "CNI_CONTAINERID is '-a'"),
        ("ADD", "CNI_CONTAINERID", "a/b", "CNI_CONTAINERID is 'a/b'"),
        ("ADD", "CNI_IFNAME", "", "CNI_IFNAME is missing"),
        ("ADD", "CNI_IFNAME", "..", "CNI_IFNAME is '..'"),
        ("ADD", "CNI_IFNAME", "sixteen-letters-", "CNI_IFNAME is 'sixteen"),
        ("ADD", "CNI_IFNAME", "a b", "CNI_IFNAME is 'a b'"),
        ("ADD", "CNI_NETNS", "", "CNI_NETNS is missing"),
        ("CHECK", "CNI_NETNS", "", "CNI_NETNS is missing"),
        ("ADD", "CNI_ARGS", "K8S_POD_NAME=x", "K8S_POD_NAME"),
        ("ADD", "CNI_ARGS", "IP", "CNI_ARGS is 'IP'"),
    ] {
        let environment = environment(command, &[(variable, value)]);
        let configuration = configured(json!({"prevResult": {}}));
        let (version, request) = parse(&environment, configuration.to_string().as_bytes());
        expect(4, told, request.expect_err(told), version);
    }
}

#[test]
fn versions_that_are_not_spoken_are_code_1() {
    for version in ["", "0.3.1", "1.1", "2.0.0"] {
        let configuration = json!({"cniVersion": version, "name": "net", "type": "rnet-cni"});
        let failure = understood("ADD", &configuration).expect_err(version);
        expect(1, &format!("'{version}'"), failure, Version::NEWEST);
    }
    let mut old = configured(json!({}));
    old["cniVersion"] = "1.0.0".into();
    for command in ["GC", "STATUS"] {
        expect(4, command, understood(command, &old).expect_err(command), Version::V1_0);
    }
}

#[test]
fn what_is_not_supported_is_code_2() {
    for (members, told) in [
        (json!({"ipam": {"type": "host-local"}}), "ipam"),
        (json!({"ipMasq": false}), "ipMasq"),
        (json!({"cidr": "10.0.0.0/24"}), "cidr"),
        (json!({"runtimeConfig": {"infinibandGUID": "x"}}), "infinibandGUID"),
        (json!({"runtimeConfig": {"aliases": ["box"]}}), "aliases"),
    ] {
        let failure = understood("ADD", &configured(members)).expect_err(told);
        expect(2, told, failure, Version::NEWEST);
    }
}

#[test]
fn what_cannot_be_decoded_is_code_6() {
    for (input, told) in [
        ("", "EOF"),
        ("{", "EOF"),
        (r#"{"cniVersion": "1.1.0", "name": 7}"#, "expected a string"),
        (r#"{"cniVersion": "1.1.0", "name": "net", "mtu": -1}"#, "invalid value"),
        (
            r#"{"cniVersion": "1.1.0", "name": "net", "runtimeConfig": {"portMappings": [{"hostPort": "80"}]}}"#,
            "expected i64",
        ),
        (
            r#"{"cniVersion": "1.1.0", "name": "net", "runtimeConfig": {"ips": "10.0.2.9"}}"#,
            "expected a sequence",
        ),
    ] {
        let (version, request) = parse(&environment("ADD", &[]), input.as_bytes());
        expect(6, told, request.expect_err(input), version);
    }
}

#[test]
fn configurations_that_make_no_sense_are_code_7() {
    for (command, members, told) in [
        ("ADD", json!({"name": ""}), "''"),
        ("ADD", json!({"name": "a b"}), "'a b'"),
        ("ADD", json!({"options": {"cidr": {}}}), "options.cidr"),
        ("ADD", json!({"options": {"publish": []}}), "options.publish"),
        ("ADD", json!({"options": {"ifname": "eth1"}}), "options.ifname"),
        ("ADD", json!({"runtimeConfig": {"ips": ["10.0.2.9/33"]}}), "10.0.2.9/33"),
        ("ADD", json!({"runtimeConfig": {"ips": ["box"]}}), "box"),
        ("ADD", json!({"runtimeConfig": {"mac": 1}}), "mac"),
        ("ADD", json!({"runtimeConfig": {"bandwidth": {"egressRate": u64::MAX}}}), "bandwidth cannot be"),
        ("CHECK", json!({}), "prevResult"),
        ("GC", json!({}), "cni.dev/valid-attachments"),
    ] {
        let failure = understood(command, &configured(members)).expect_err(told);
        expect(7, told, failure, Version::NEWEST);
    }
}

fn expect(code: u32, told: &str, failure: Failure, version: Version) {
    let answer = failure.to_json(version);
    assert_eq!(answer["code"], code, "{answer}");
    assert!(answer["msg"].is_string() && answer.to_string().contains(told), "no {told}: {answer}");
}

fn understood(command: &str, configuration: &Value) -> Result<Request, Failure> {
    parse(&environment(command, &[]), configuration.to_string().as_bytes()).1
}

/// A configuration of version 1.1.0 with `members`.
fn configured(members: Value) -> Value {
    let mut configuration = json!({"cniVersion": "1.1.0", "name": "net", "type": "rnet-cni"});
    for (name, value) in members.as_object().expect("members") {
        configuration[name] = value.clone();
    }
    configuration
}

/// The environment of a usual call, with `changed` variables.
fn environment(command: &str, changed: &[(&str, &str)]) -> Environment {
    let usual = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "box"),
        ("CNI_NETNS", "/run/netns/box"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        ("HOME", "/root"),
    ];
    let variables = usual.iter().chain(changed).map(|(name, value)| ((*name).into(), (*value).into()));
    Environment::new(&variables.collect::<Vec<_>>())
}
