//! What a network plugin answers (CNI specification 1.1, sections "Success", "Error" and "Version Success"); pure.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::request::Dns;
use crate::config::{MacAddr, Network};
use crate::error::Error;

/// A version of the specification that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// 0.4.0, in which addresses carry the version of IP.
    V0_4,
    /// 1.0.0.
    V1_0,
    /// 1.1.0, with GC, STATUS and the MTU of interfaces.
    V1_1,
}

impl Version {
    /// The newest.
    pub(super) const NEWEST: Self = Self::V1_1;
    const ALL: [Self; 3] = [Self::V0_4, Self::V1_0, Self::V1_1];

    /// The one that a configuration names.
    pub(super) fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// Whether it knows GC and STATUS.
    pub(super) fn has_gc_and_status(self) -> bool {
        self >= Self::V1_1
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::V0_4 => "0.4.0",
            Self::V1_0 => "1.0.0",
            Self::V1_1 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a plugin fails, in the specification's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// The version of the configuration is not spoken.
    Version = 1,
    /// A member of the configuration is not supported.
    Unsupported = 2,
    /// A variable of the environment is missing or wrong.
    Environment = 4,
    /// Reading or writing has failed.
    Io = 5,
    /// Something is not the JSON that it should be.
    Undecodable = 6,
    /// The configuration makes no sense.
    Configuration = 7,
    /// No network can be given.
    Unavailable = 50,
    /// rnet's own (100 and up are free to use): setting the network up has failed.
    SetUp = 100,
    /// rnet's own: the network is not as it was set up.
    Broken = 101,
}

/// A failure as it is told to the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    code: Code,
    text: String,
    details: Option<String>,
}

impl Failure {
    /// One of kind `code`; `text` is one line.
    pub(super) fn new(code: Code, text: impl fmt::Display) -> Self {
        Self { code, text: text.to_string(), details: None }
    }

    /// The configuration is of version `asked`.
    pub(super) fn incompatible(asked: &str) -> Self {
        let spoken = Version::ALL.map(Version::as_str).join(", ");
        Self::new(Code::Version, format!("version '{asked}' of the specification is not spoken"))
            .details(format!("rnet speaks {spoken}"))
    }

    /// An error of set-up.
    pub(super) fn of(code: Code, error: &Error) -> Self {
        let told = error.to_string();
        let mut lines = told.splitn(2, '\n').map(str::trim);
        let failure = Self::new(code, lines.next().unwrap_or_default());
        match lines.next() {
            Some(hint) => failure.details(hint),
            None => failure,
        }
    }

    /// Adds a longer explanation.
    #[must_use]
    pub(super) fn details(mut self, details: impl fmt::Display) -> Self {
        self.details = Some(details.to_string());
        self
    }

    /// The answer.
    pub(super) fn to_json(&self, version: Version) -> Value {
        let mut answer = json!({"cniVersion": version.as_str(), "code": self.code as u32, "msg": self.text});
        if let Some(details) = &self.details {
            answer["details"] = details.as_str().into();
        }
        answer
    }
}

/// The answer to VERSION.
pub(super) fn versions(version: Version) -> Value {
    json!({"cniVersion": version.as_str(), "supportedVersions": Version::ALL.map(Version::as_str)})
}

/// A container's interface as it was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made<'a> {
    /// Its name.
    pub(super) ifname: &'a str,
    /// Its Ethernet address.
    pub(super) mac: MacAddr,
    /// Where it is.
    pub(super) netns: &'a Path,
    /// The network that it leads to.
    pub(super) network: &'a Network,
}

/// The answer to ADD: `previous`, the result of the plugins before this one, with what was `made` behind it.
pub(super) fn added(
    version: Version,
    previous: Option<Value>,
    made: &Made<'_>,
    dns: &Dns,
) -> Result<Value, Failure> {
    let mut result = previous.unwrap_or_else(|| json!({}));
    let interfaces = list(&mut result, "interfaces")?;
    let number = interfaces.len();
    let mut interface =
        json!({"name": made.ifname, "mac": made.mac.to_string(), "sandbox": made.netns.to_string_lossy()});
    if version >= Version::V1_1 {
        interface["mtu"] = made.network.mtu.into();
    }
    interfaces.push(interface);
    for (guest, length, gateway) in addresses(made.network) {
        let mut ip = json!({"address": format!("{guest}/{length}"), "gateway": gateway, "interface": number});
        if version < Version::V1_0 {
            ip["version"] = if guest.is_ipv4() { "4" } else { "6" }.into();
        }
        list(&mut result, "ips")?.push(ip);
        let everywhere = if guest.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        list(&mut result, "routes")?.push(json!({"dst": everywhere, "gw": gateway}));
    }
    result["dns"] = resolver(made.network, dns);
    result["cniVersion"] = version.as_str().into();
    Ok(result)
}

/// The guest's addresses with the length of their prefix and the gateway.
pub(super) fn addresses(network: &Network) -> impl Iterator<Item = (IpAddr, u8, IpAddr)> {
    let v4 = network.ipv4.map(|plan| (plan.guest.into(), plan.subnet.prefix_len(), plan.gateway.into()));
    let v6 = network.ipv6.map(|plan| (plan.guest.into(), plan.subnet.prefix_len(), plan.gateway.into()));
    v4.into_iter().chain(v6)
}

fn resolver(network: &Network, asked: &Dns) -> Value {
    let servers: Vec<String> = network.dns_addresses().map(|address| address.to_string()).collect();
    let mut dns = json!({ "nameservers": servers });
    if let Some(domain) = &asked.domain {
        dns["domain"] = domain.as_str().into();
    }
    for (name, list) in [("search", &asked.search), ("options", &asked.options)] {
        if !list.is_empty() {
            dns[name] = list.as_slice().into();
        }
    }
    dns
}

fn list<'a>(result: &'a mut Value, name: &str) -> Result<&'a mut Vec<Value>, Failure> {
    let wrong = || Failure::new(Code::Configuration, format!("prevResult.{name} is no list"));
    let members =
        result.as_object_mut().ok_or_else(|| Failure::new(Code::Configuration, "prevResult is no object"))?;
    let list = members.entry(name).or_insert(Value::Null);
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().ok_or_else(wrong)
}

/// What an earlier ADD has promised of the interface `ifname` in `netns`: its Ethernet address and its IP addresses.
pub(super) fn promised(
    previous: &Value,
    ifname: &str,
    netns: &Path,
) -> Result<(String, Vec<IpAddr>), Failure> {
    let members =
        |name: &str| previous.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_ours = |interface: &Value| {
        interface.get("name").and_then(Value::as_str) == Some(ifname)
            && interface.get("sandbox").and_then(Value::as_str).map(Path::new) == Some(netns)
    };
    let interfaces = members("interfaces");
    let number = interfaces.iter().position(is_ours).ok_or_else(|| {
        let text = format!("prevResult has no interface {ifname} in {}", netns.display());
        Failure::new(Code::Configuration, text)
    })?;
    let mac = interfaces[number].get("mac").and_then(Value::as_str).unwrap_or_default();
    let ours =
        members("ips").iter().filter(|ip| ip.get("interface").and_then(Value::as_u64) == Some(number as u64));
    let address = |ip: &Value| {
        let text = ip.get("address").and_then(Value::as_str)?;
        text.split('/').next()?.parse().ok()
    };
    Ok((mac.to_owned(), ours.filter_map(address).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Ipv4Plan, Ipv6Plan};

    #[test]
    fn a_result_tells_interface_addresses_routes_and_dns() {
        let dns = Dns { search: vec!["test".into()], ..Dns::default() };
        let result = answered(Version::V1_1, None, &dns);
        assert_eq!(
            result,
            json!({
                "cniVersion": "1.1.0",
                "interfaces": [{"name": "eth0", "mac": "52:56:00:00:00:01", "sandbox": "/run/netns/a", "mtu": 65520}],
                "ips": [
                    {"address": "10.0.2.100/24", "gateway": "10.0.2.2", "interface": 0},
                    {"address": "fd00::100/64", "gateway": "fd00::2", "interface": 0},
                ],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.2.2"}, {"dst": "::/0", "gw": "fd00::2"}],
                "dns": {"nameservers": ["10.0.2.3", "fd00::3"], "search": ["test"]},
            })
        );
    }

    #[test]
    fn older_versions_have_their_own_members() {
        let result = answered(Version::V0_4, None, &Dns::default());
        assert_eq!(result["ips"][1]["version"], "6");
        assert_eq!(result["interfaces"][0].get("mtu"), None);
        let result = answered(Version::V1_0, None, &Dns::default());
        assert_eq!((result["ips"][0].get("version"), &result["cniVersion"]), (None, &json!("1.0.0")));
    }

    #[test]
    fn what_plugins_before_have_made_stays() {
        let previous = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "lo"}], "ips": [{"address": "127.0.0.1/8", "interface": 0}]});
        let result = answered(Version::V1_0, Some(previous), &Dns::default());
        assert_eq!(result["interfaces"][0]["name"], "lo");
        assert_eq!(result["interfaces"][1]["name"], "eth0");
        assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
        assert_eq!(result["ips"][1]["interface"], 1);
        let (mac, ips) = promised(&result, "eth0", Path::new("/run/netns/a")).expect("promised above");
        assert_eq!(mac, "52:56:00:00:00:01");
        assert_eq!(ips, ["10.0.2.100".parse::<IpAddr>().expect("one"), "fd00::100".parse().expect("one")]);
    }

    #[test]
    fn a_previous_result_of_another_shape_is_refused() {
        for previous in [json!([]), json!({"ips": {}}), json!({"interfaces": 1})] {
            let made = made();
            let failure =
                added(Version::V1_0, Some(previous), &made.of(), &Dns::default()).expect_err("no result");
            assert_eq!(failure.code, Code::Configuration);
        }
        assert!(
            promised(&json!({"interfaces": [{"name": "eth0"}]}), "eth0", Path::new("/run/netns/a")).is_err()
        );
    }

    #[test]
    fn failures_have_number_text_and_remedy() {
        let error = Error::new("cannot listen on", "port 80", "denied").hint("use 8080");
        assert_eq!(
            Failure::of(Code::SetUp, &error).to_json(Version::V1_0),
            json!({"cniVersion": "1.0.0", "code": 100, "msg": "cannot listen on port 80: denied", "details": "hint: use 8080"})
        );
        let told = Failure::incompatible("9.9").to_json(Version::NEWEST);
        assert_eq!((&told["code"], &told["details"]), (&json!(1), &json!("rnet speaks 0.4.0, 1.0.0, 1.1.0")));
    }

    #[test]
    fn versions_are_listed() {
        let told = versions(Version::V1_0);
        assert_eq!(told, json!({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}));
    }

    struct Owned(Network);

    impl Owned {
        fn of(&self) -> Made<'_> {
            Made {
                ifname: "eth0",
                mac: MacAddr([0x52, 0x56, 0, 0, 0, 1]),
                netns: Path::new("/run/netns/a"),
                network: &self.0,
            }
        }
    }

    fn made() -> Owned {
        let ipv4 = Ipv4Plan::new("10.0.2.0/24".parse().expect("a subnet")).expect("large enough");
        let ipv6 = Ipv6Plan::new("fd00::/64".parse().expect("a subnet")).expect("large enough");
        Owned(Network::new(ipv4, Some(ipv6)))
    }

    fn answered(version: Version, previous: Option<Value>, dns: &Dns) -> Value {
        added(version, previous, &made().of(), dns).expect("an answer")
    }
}
