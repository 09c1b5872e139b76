//! Archives made byte by byte, as no honest program makes them.

use super::super::fixture::{Tar, pax, terminated};
use super::*;

#[test]
fn names_are_joined_from_prefix_and_name_or_come_from_extensions() {
    let long = "d/".repeat(80) + "file";
    let tar = Tar::new()
        .file("plain", b"text")
        .header("name", b'0', |header| {
            header[257..263].copy_from_slice(b"ustar\0");
            header[345..351].copy_from_slice(b"prefix");
        })
        .raw(b'L', terminated(&long).as_slice())
        .file("short", b"")
        .raw(b'x', &pax(&[("path", long.as_bytes()), ("size", b"3")]))
        .header("short", b'0', |_| {})
        .bytes(b"abc")
        .finish();
    assert_eq!(names(&tar), ["plain", "prefix/name", &long, &long]);
}

#[test]
fn content_is_read_or_skipped() {
    let tar = Tar::new().file("a", b"first").file("b", &[7; 700]).finish();
    let mut reader = Reader::new(tar.as_slice());
    let entry = reader.next().expect("sound").expect("there");
    assert_eq!((entry.size, entry.kind, entry.mode), (5, Kind::File, 0o644));
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("readable");
    assert_eq!(text, "first");
    let entry = reader.next().expect("sound").expect("there");
    assert_eq!((entry.path.as_slice(), reader.position(), reader.stored()), (b"b".as_slice(), 1536, 1024));
    assert!(reader.next().expect("skipped").is_none());
}

#[test]
fn records_hold_any_byte_and_dates_a_fraction() {
    let tar = Tar::new()
        .raw(b'g', &pax(&[("mtime", b"7"), ("SCHILY.xattr.user.all", b"1")]))
        .raw(b'x', &pax(&[("mtime", b"-1.25"), ("uid", b"3000000"), ("SCHILY.xattr.user.odd", b"a\nb=\0")]))
        .file("a", b"")
        .file("b", b"")
        .finish();
    let mut reader = Reader::new(tar.as_slice());
    let first = reader.next().expect("sound").expect("there");
    assert_eq!(first.modified, Modified { seconds: -2, nanoseconds: 750_000_000 });
    let odd = ("user.odd".to_owned(), b"a\nb=\0".to_vec());
    assert_eq!(first.attributes, [odd, ("user.all".to_owned(), b"1".to_vec())]);
    let second = reader.next().expect("sound").expect("there");
    assert_eq!((second.modified.seconds, second.attributes.len()), (7, 1));
    assert_eq!((first.owner, second.owner), (Owner { uid: 3_000_000, gid: 0 }, Owner::default()));
}

#[test]
fn numbers_may_be_binary() {
    let date = |bytes: [u8; 12]| {
        let tar = Tar::new().header("a", b'0', |header| header[136..148].copy_from_slice(&bytes)).finish();
        Reader::new(tar.as_slice()).next().expect("sound").expect("there").modified.seconds
    };
    let mut bytes = [0xff; 12];
    assert_eq!(date(bytes), -1);
    bytes = [0; 12];
    bytes[0] = 0x80;
    bytes[7] = 2;
    assert_eq!(date(bytes), 2 << 32);
}

#[test]
fn every_format_of_sparse_files_is_understood() {
    let map = |header: &mut [u8]| {
        header[386..397].copy_from_slice(b"00000001000");
        header[398..409].copy_from_slice(b"00000000005");
        header[483..494].copy_from_slice(b"00000002000");
        header[124..135].copy_from_slice(b"00000000005");
    };
    let gnu = Tar::new().header("f", b'S', map).bytes(b"bytes").finish();
    let header =
        pax(&[("GNU.sparse.size", b"1024"), ("GNU.sparse.map", b"512,5"), ("GNU.sparse.name", b"f")]);
    let pax01 = Tar::new().raw(b'x', &header).file("odd", b"bytes").finish();
    let header = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"1024"),
        ("GNU.sparse.name", b"f"),
    ]);
    let mut content = b"1\n512\n5\n".to_vec();
    content.resize(512, 0);
    content.extend(b"bytes");
    let pax10 = Tar::new().raw(b'x', &header).file("odd", &content).finish();
    for tar in [gnu, pax01, pax10] {
        let mut reader = Reader::new(tar.as_slice());
        let entry = reader.next().expect("sound").expect("there");
        assert_eq!((entry.path.as_slice(), entry.size), (b"f".as_slice(), 1024));
        assert_eq!(entry.segments, [Segment { offset: 512, length: 5 }]);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("readable");
        assert_eq!(text, "bytes");
    }
}

#[test]
fn damage_is_named() {
    let whole = Tar::new().file("a", &[1; 2000]).finish();
    let mut flipped = Tar::new().file("a", b"x").file("b", b"y").finish();
    flipped[1024] ^= 1;
    let huge =
        Tar::new().header("a", b'L', |header| header[124..135].copy_from_slice(b"77777777777")).finish();
    let endless = Tar::new().header("a", b'0', |header| header[124..136].fill(0x8f)).finish();
    let map = pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"8,5")]);
    for (tar, part) in [
        (b"#!/bin/sh\n".repeat(60), "no tar"),
        (Vec::new(), "cut short"),
        (whole[..1000].to_vec(), "cut short"),
        (whole[..512 + 2048].to_vec(), "cut short"),
        (flipped, "checksum"),
        (huge, "8589934591 bytes"),
        (endless, "damaged"),
        (Tar::new().raw(b'x', b"99 a=b\n").finish(), "malformed"),
        (Tar::new().raw(b'x', b"3 =\n").finish(), "malformed"),
        (Tar::new().raw(b'x', &pax(&[("path", b"a")])).finish(), "cut short"),
        (Tar::new().raw(b'x', &map).file("a", b"bytes").finish(), "map is wrong"),
    ] {
        let error = all(&tar).expect_err(part).to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

fn names(tar: &[u8]) -> Vec<String> {
    let entries = all(tar).expect("a sound archive").into_iter();
    entries.map(|entry| String::from_utf8(entry.path).expect("ASCII")).collect()
}

fn all(tar: &[u8]) -> io::Result<Vec<Entry>> {
    let mut reader = Reader::new(tar);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        entries.push(entry);
    }
    Ok(entries)
}
