//! Archives that mean harm, and those that mean well.

use std::fs::{self, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use super::super::fixture::{Tar, pax};
use super::*;

/// A directory to unpack into, with a file beside it that nobody may touch.
struct Ground(tempfile::TempDir);

impl Ground {
    fn new() -> Self {
        let ground = Self(tempfile::tempdir().expect("a temporary directory"));
        fs::create_dir(ground.at("")).expect("made");
        fs::write(ground.0.path().join("secret"), "secret").expect("written");
        ground
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join("root").join(name)
    }

    fn root(&self, tar: &[u8]) -> io::Result<Summary> {
        let mut unpacking = Unpacking::new(&self.at(""))?;
        unpacking.root(tar)?;
        unpacking.finish()
    }

    fn layers(&self, layers: &[&[u8]]) -> io::Result<Summary> {
        let mut unpacking = Unpacking::new(&self.at(""))?;
        layers.iter().try_for_each(|layer| unpacking.layer(*layer))?;
        unpacking.finish()
    }

    /// Whether nothing has come to lie beside the root, or been changed there.
    fn is_untouched(&self) -> bool {
        let secret = fs::read_to_string(self.0.path().join("secret")).expect("there");
        secret == "secret" && fs::read_dir(self.0.path()).expect("there").count() == 2
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).expect("readable")
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.at(directory)).expect("a directory").flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

#[test]
fn what_leaves_the_root_is_refused() {
    let outside = "leaves the root";
    for (tar, part) in [
        (Tar::new().file("../secret", b"x"), outside),
        (Tar::new().file("a/../../secret", b"x"), outside),
        (Tar::new().directory("..", 0o755), outside),
        (Tar::new().raw(b'x', &pax(&[("path", b"../secret")])).file("a", b"x"), outside),
        (Tar::new().link(b'1', "a", "../secret"), outside),
        (Tar::new().raw(b'x', &pax(&[("linkpath", b"a/../../secret")])).link(b'1', "a", "b"), outside),
        (Tar::new().link(b'1', "a", "missing"), "missing"),
        (Tar::new().directory("d", 0o755).link(b'1', "a", "d"), "hard link to d"),
        (Tar::new().file(".", b"x"), "root's place"),
        (Tar::new().link(b'2', "./", "/etc"), "root's place"),
    ] {
        let ground = Ground::new();
        let error = ground.root(&tar.finish()).expect_err(part).to_string();
        assert!(error.contains(part), "{part}: {error}");
        assert!(ground.is_untouched(), "{part}");
    }
}

#[test]
fn links_lead_no_further_than_the_root() {
    let ground = Ground::new();
    symlink(ground.0.path(), ground.at("out")).expect("linked");
    let secret = ground.0.path().join("secret");
    let secret = secret.to_str().expect("UTF-8");
    // To directories outside, and to files: those are replaced, not written through.
    for (target, name) in
        [("..", "l/secret"), ("../..", "l/x"), ("/etc", "l/passwd"), (secret, "l"), ("../secret", "l")]
    {
        let made = ground.root(&Tar::new().link(b'2', "l", target).file(name, b"x").finish());
        assert!(ground.is_untouched(), "{target}: {made:?}");
        fs::remove_file(ground.at("l")).expect("one of ours");
    }
    let through = Tar::new().link(b'2', "l", "/").file("l/secret", b"x").finish();
    ground.root(&through).expect("the root is the tree's");
    assert_eq!(ground.text("secret"), "x");
    let hard = Tar::new().link(b'2', "m", "../secret").link(b'1', "n", "m").file("n", b"x").finish();
    ground.root(&hard).expect("a link to a link");
    let replaced = Tar::new().file("out/secret", b"x").finish();
    assert!(ground.root(&replaced).is_err(), "it leads to a directory that the tree does not have");
    assert!(ground.is_untouched());
}

#[test]
fn devices_and_unknown_kinds_are_refused_by_name() {
    for (kind, part) in [(b'3', "a device"), (b'4', "a device"), (b'Z', "not known: Z")] {
        let ground = Ground::new();
        let error = ground.root(&Tar::new().file("a", b"").header("dev/x", kind, |_| {}).finish());
        let error = error.expect_err(part).to_string();
        assert!(error.contains(part) && error.contains("dev/x"), "{error}");
    }
    let ground = Ground::new();
    assert!(ground.root(&Tar::new().finish()).expect_err("empty").to_string().contains("nothing"));
}

#[test]
fn modes_times_links_and_attributes_are_kept() {
    let ground = Ground::new();
    let attributes = pax(&[
        ("SCHILY.xattr.user.kept", b"yes"),
        ("SCHILY.xattr.user.overlay.redirect", b"/"),
        ("SCHILY.xattr.security.capability", b"no"),
    ]);
    let tar = Tar::new()
        .directory("closed", 0o500)
        .raw(b'x', &attributes)
        .file_of_mode("closed/set", 0o4755, b"text")
        .directory("implied/below", 0o1777)
        .link(b'1', "hard", "/closed/set")
        .link(b'2', "soft", "/closed/set")
        .header("pipe", b'6', |_| {})
        .directory("./", 0o750)
        .finish();
    ground.root(&tar).expect("a good archive");
    let looks = |name: &str| {
        let found = fs::symlink_metadata(ground.at(name)).expect("there");
        (found.mode() & 0o7777, found.mtime())
    };
    assert_eq!((looks("closed"), looks("hard")), ((0o500, 1000), (0o4755, 1000)));
    assert_eq!(
        (looks("implied").0, looks("implied/below"), looks("")),
        (0o755, (0o1777, 1000), (0o750, 1000))
    );
    assert_eq!((looks("soft").1, looks("pipe")), (1000, (0o644, 1000)));
    let inode = |name: &str| fs::metadata(ground.at(name)).expect("there").ino();
    assert_eq!(inode("hard"), inode("closed/set"));
    let listed = std::process::Command::new("getfattr").arg("-d").arg(ground.at("hard")).output();
    if let Ok(listed) = listed {
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("user.kept=\"yes\"") && !listed.contains("overlay"), "{listed}");
    }
    fs::set_permissions(ground.at("closed"), Permissions::from_mode(0o700)).expect("ours");
}

#[test]
fn holes_stay_holes_and_count_as_nothing() {
    let ground = Ground::new();
    let map = pax(&[("GNU.sparse.size", b"1099511627776"), ("GNU.sparse.map", b"1099511627770,5")]);
    let summary = ground.root(&Tar::new().raw(b'x', &map).file("huge", b"bytes").finish()).expect("sound");
    let found = fs::metadata(ground.at("huge")).expect("there");
    assert_eq!(found.len(), 1 << 40);
    assert!(found.blocks() < 100 && summary.bytes < 1 << 20, "{summary:?}");
}

#[test]
fn deep_trees_are_refused_even_over_links() {
    let deep = |depth: usize| "d/".repeat(depth);
    let ground = Ground::new();
    let tar = Tar::new().raw(b'L', deep(300).as_bytes()).directory("x", 0o755).finish();
    assert!(ground.root(&tar).expect_err("too deep").to_string().contains("200 directories"));
    let ground = Ground::new();
    let tar = Tar::new()
        .raw(b'L', deep(150).as_bytes())
        .directory("x", 0o755)
        .raw(b'K', format!("/{}", deep(150)).as_bytes())
        .link(b'2', "l", "x")
        .raw(b'L', format!("l/{}", deep(100)).as_bytes())
        .directory("x", 0o755)
        .finish();
    assert!(ground.root(&tar).expect_err("too deep").to_string().contains("200 directories"));
}

#[test]
fn layers_lie_over_each_other() {
    let ground = Ground::new();
    let lower = Tar::new()
        .file("etc/a", b"lower")
        .file("etc/b", b"lower")
        .file("opaque/gone", b"")
        .file("opaque/kept/gone", b"")
        .file("tree/x/y", b"")
        .link(b'2', "lib", "usr/lib")
        .directory("usr/lib", 0o755)
        .file("both", b"a file")
        .finish();
    let upper = Tar::new()
        .file("etc/.wh.a", b"")
        .file("etc/b", b"upper")
        .file("opaque/kept/new", b"")
        .file("opaque/new", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file(".wh.tree", b"")
        .file(".wh.missing", b"")
        .file("no/such/.wh.thing", b"")
        .file(".wh..wh.plnk", b"")
        .file("lib/file", b"through")
        .directory("both", 0o711)
        .finish();
    let third = Tar::new().file("tree/again", b"").directory("etc", 0o700).finish();
    ground.layers(&[&lower, &upper, &third]).expect("sound");
    assert_eq!((ground.names("etc"), ground.text("etc/b")), (vec!["b".to_owned()], "upper".to_owned()));
    assert_eq!(
        (ground.names("opaque"), ground.names("opaque/kept")),
        (vec!["kept".to_owned(), "new".to_owned()], vec!["new".to_owned()])
    );
    assert_eq!(
        (ground.names("tree"), ground.text("usr/lib/file")),
        (vec!["again".to_owned()], "through".into())
    );
    let mode = |name: &str| fs::metadata(ground.at(name)).expect("there").mode() & 0o777;
    assert_eq!((mode("both"), mode("etc")), (0o711, 0o700));
}

#[test]
fn deleting_reaches_nothing_outside() {
    let lower = Tar::new().link(b'2', "up", "..").link(b'2', "all", "/").file("mine", b"").finish();
    for (name, part) in [("../.wh.secret", "leaves"), (".wh...", "leaves"), ("..", "leaves")] {
        let ground = Ground::new();
        let error = ground.layers(&[&lower, &Tar::new().file(name, b"").finish()]).expect_err(name);
        assert!(error.to_string().contains(part) && ground.is_untouched(), "{name}: {error}");
    }
    let ground = Ground::new();
    let upper = Tar::new().file("up/.wh.secret", b"").file("up/.wh..wh..opq", b"").finish();
    ground.layers(&[&lower, &upper]).expect("the root has no parent");
    assert!(ground.is_untouched());
    assert!(ground.names("").is_empty(), "the link led to the root itself: {:?}", ground.names(""));
}

/// Whatever is changed in an archive, unpacking it ends, and nothing outside is touched.
#[test]
fn damage_anywhere_does_no_harm() {
    let records = pax(&[("path", b"dir/long"), ("GNU.sparse.map", b"0,4"), ("GNU.sparse.size", b"9000")]);
    let sound = Tar::new()
        .directory("dir", 0o755)
        .raw(b'L', b"dir/name\0")
        .file("x", &[7; 600])
        .raw(b'x', &records)
        .file("y", b"text")
        .link(b'1', "hard", "dir/name")
        .link(b'2', "soft", "../secret")
        .header("pipe", b'6', |_| {})
        .finish();
    let seed = RandomState::new().hash_one(0);
    println!("seed {seed:#x}");
    let mut random = seed | 1;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % below
    };
    for _ in 0..300 {
        let mut tar = sound.clone();
        for _ in 0..=next(4) {
            let at = next(tar.len());
            tar[at] = next(256) as u8;
            mend_checksum(&mut tar, at);
        }
        let ground = Ground::new();
        // Sound or not, it is what it is.
        let _ = ground.root(&tar);
        assert!(ground.is_untouched());
    }
}

/// Makes the checksum of the block around `at` right, as if it were a header.
fn mend_checksum(tar: &mut [u8], at: usize) {
    let block = &mut tar[at / 512 * 512..][..512];
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}
