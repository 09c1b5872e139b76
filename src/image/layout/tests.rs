//! Documents as docker, buildah and skopeo write them.

use super::*;

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn index(entries: &[(&str, &str, &str)]) -> Vec<Descriptor> {
    let entries: Vec<String> = entries
        .iter()
        .map(|(digest, platform, name)| {
            let platform = platform.split_once('/').map_or(String::new(), |(os, rest)| {
                let (architecture, variant) = rest.split_once('/').unwrap_or((rest, ""));
                format!(
                    r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#
                )
            });
            let name = match *name {
                "" => r#","annotations":null"#.to_owned(),
                name => format!(r#","annotations":{{"{}":"{name}"}}"#, NAMES[1]),
            };
            format!(r#"{{"mediaType":"m","digest":"{digest}","size":7{platform}{name}}}"#)
        })
        .collect();
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
    match Document::parse(text.as_bytes()).expect("an index") {
        Document::Index(found) => found,
        other => panic!("{other:?}"),
    }
}

fn platform(text: &str) -> Platform {
    Platform::parse(text).expect("a platform")
}

fn chosen(index: &[Descriptor], name: Option<&str>, wanted: &str) -> Result<String, String> {
    choose(index, name, &platform(wanted)).map(|found| found.digest.to_string())
}

#[test]
fn the_only_image_needs_no_name() {
    assert_eq!(chosen(&index(&[(A, "", "")]), None, "linux/amd64").as_deref(), Ok(A));
    assert_eq!(chosen(&index(&[(A, "", "latest")]), None, "linux/amd64").as_deref(), Ok(A));
    assert!(chosen(&index(&[]), None, "linux/amd64").expect_err("empty").contains("no image"));
}

#[test]
fn names_choose_among_several() {
    let index = index(&[(A, "", "docker.io/library/alpine:3.20"), (B, "", "3.21")]);
    for name in ["3.20", "alpine:3.20", "docker.io/library/alpine:3.20"] {
        assert_eq!(chosen(&index, Some(name), "linux/amd64").as_deref(), Ok(A));
    }
    let several = chosen(&index, None, "linux/amd64").expect_err("several");
    assert!(several.contains("3.21, docker.io/library/alpine:3.20"), "{several}");
    assert!(chosen(&index, Some("20"), "linux/amd64").expect_err("none").contains("nothing called 20"));
}

#[test]
fn dockers_full_names_count_beside_tags() {
    let entry = |digest: &str, name: &str, tag: &str| {
        let annotations = format!(r#"{{"{}":"{name}","{}":"{tag}"}}"#, NAMES[0], NAMES[1]);
        format!(r#"{{"digest":"{digest}","size":7,"annotations":{annotations}}}"#)
    };
    let entries = [entry(A, "docker.io/library/web:1", "1"), entry(B, "docker.io/library/db:1", "1")];
    let text = format!(r#"{{"manifests":[{}]}}"#, entries.join(","));
    let Document::Index(index) = Document::parse(text.as_bytes()).expect("an index") else {
        panic!("no index")
    };
    assert_eq!(chosen(&index, Some("db:1"), "linux/amd64").as_deref(), Ok(B));
    assert!(chosen(&index, Some("1"), "linux/amd64").expect_err("both").contains("library/web:1"));
}

#[test]
fn platforms_choose_the_variant() {
    let index = index(&[
        (A, "linux/arm/v6", ""),
        (B, "linux/arm/v7", ""),
        (A, "unknown/unknown", ""),
        (A, "windows/amd64", ""),
    ]);
    assert_eq!(chosen(&index, None, "linux/arm/v7").as_deref(), Ok(B));
    assert_eq!(chosen(&index, None, "linux/arm").as_deref(), Ok(A));
    let none = chosen(&index, None, "linux/riscv64").expect_err("not there");
    assert!(none.contains("linux/riscv64") && none.contains("linux/arm/v7, unknown/unknown"), "{none}");
    assert_eq!(this_machine().os, "linux");
}

#[test]
fn manifests_name_their_layers() {
    let blob = |kind: &str, digest: &str| format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":3}}"#);
    let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
    let manifest = |layer: &str| {
        let text = format!(r#"{{"config":{},"layers":[{}]}}"#, blob("c", A), blob(layer, B));
        match Document::parse(text.as_bytes()).expect("a manifest") {
            Document::Manifest(manifest) => manifest,
            other => panic!("{other:?}"),
        }
    };
    let found = manifest(layer);
    assert_eq!((found.config.digest.to_string(), found.layers[0].size), (A.to_owned(), 3));
    assert_eq!(found.layers[0].check_layer(), Ok(()));
    assert!(manifest(&format!("{layer}+encrypted")).layers[0].check_layer().is_err());
    assert!(manifest("application/vnd.cncf.helm.chart.content.v1.tar+gzip").layers[0].check_layer().is_err());
    for wrong in ["", "[]", "{}", r#"{"manifests":[{"digest":"md5:0","size":1}]}"#, r#"{"config":{}}"#] {
        assert!(Document::parse(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn a_configuration_is_read_with_its_gaps() {
    let text = format!(
        r#"{{"os":"linux","architecture":"arm64","variant":"v8","rootfs":{{"type":"layers","diff_ids":["{A}"]}},
        "config":{{"User":"web:1000","Env":["A=1=2","B"],"Entrypoint":["/bin/x","-y"],"Cmd":null,
        "WorkingDir":"/srv","ExposedPorts":{{"80/tcp":{{}},"53/udp":{{}},"9/sctp":{{}},"443":{{}},"x":{{}}}},
        "Labels":null,"StopSignal":"SIGQUIT"}}}}"#
    );
    let config = ImageConfig::parse(text.as_bytes()).expect("understood");
    assert_eq!(config.platform, Some(platform("linux/arm64/v8")));
    assert_eq!((config.user.as_str(), config.workdir.as_str()), ("web:1000", "/srv"));
    assert_eq!(config.stop_signal, "SIGQUIT");
    assert_eq!(config.env, [("A".into(), "1=2".into()), ("B".into(), String::new())]);
    assert_eq!((config.entrypoint, config.command), (vec!["/bin/x".into(), "-y".into()], Vec::new()));
    assert_eq!(config.ports, [(443, Transport::Tcp), (53, Transport::Udp), (80, Transport::Tcp)]);
    assert_eq!(config.diff_ids, [Digest::parse(A).expect("a digest")]);
    let empty = ImageConfig::parse(br#"{"config":null,"rootfs":{"diff_ids":null}}"#).expect("understood");
    assert_eq!(empty, ImageConfig::default());
}

#[test]
fn dockers_archives_are_chosen_by_tag() {
    let text = r#"[{"Config":"a.json","RepoTags":["web:1","web:latest"],"Layers":["a/layer.tar"]},
        {"Config":"b.json","RepoTags":null,"Layers":[]}]"#;
    let images = saved(text.as_bytes()).expect("understood");
    assert_eq!(choose_saved(&images, Some("latest")).map(|image| image.config.as_str()), Ok("a.json"));
    assert_eq!(choose_saved(&images[1..], None).map(|image| image.config.as_str()), Ok("b.json"));
    assert!(choose_saved(&images, None).expect_err("two").contains("web:1, web:latest"));
}
