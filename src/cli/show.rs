//! `show` and `diff`.

use serde_json::{Value, json};

use super::Done;
use super::args::{Diff, Show};
use super::table::{count, size};
use super::ui::{Hue, Text, Ui, path_json};
use crate::error::Result;
use crate::layer::diff::{self, Kind};
use crate::layer::index::{Index, Node, ROOT};
use crate::layer::stack;
use crate::store::versions::{Manifest, VersionName};
use crate::store::{Digest, Store};

/// A layer as it is shown.
struct LayerLine {
    digest: Digest,
    paths: u32,
    object_bytes: u64,
    index_bytes: u64,
}

pub fn show(ui: &Ui, store: &Store, args: &Show) -> Done {
    let name: VersionName = args.version.parse()?;
    let _held = store.in_use()?;
    let version = store.resolve(&name)?;
    let manifest = store.version(&version)?;
    let tags: Vec<String> = store
        .refs()?
        .into_iter()
        .filter(|r| r.version == version)
        .map(|r| format!("{}:{}", r.image, r.tag))
        .collect();
    let layers: Vec<LayerLine> =
        manifest.stack.iter().map(|digest| layer_line(store, digest)).collect::<Result<_>>()?;
    let files = match args.files {
        true => {
            let tree = stack::open_tree(store, &manifest)?;
            Some(
                walk(&tree)?
                    .into_iter()
                    .map(|(path, node)| file(&tree, path, &node))
                    .collect::<Result<_>>()?,
            )
        }
        false => None,
    };
    ui.answer(
        || show_json(&version, &tags, &manifest, &layers, &files),
        |out| {
            if let Some(files) = &files {
                for file in files {
                    file.line(out);
                }
                return;
            }
            show_text(out, &version, &tags, &manifest, &layers);
        },
    )?;
    Ok(0)
}

fn layer_line(store: &Store, digest: &Digest) -> Result<LayerLine> {
    let index = stack::open_layer(store, digest)?;
    let mut objects = stack::objects_of(&index)?;
    objects.sort();
    objects.dedup();
    Ok(LayerLine {
        digest: *digest,
        paths: index.len(),
        object_bytes: objects.iter().map(|(_, size)| size).sum(),
        index_bytes: index.bytes().len() as u64,
    })
}

fn kind(at: usize) -> &'static str {
    if at == 0 { "base" } else { "delta" }
}

fn show_text(out: &mut Text, version: &Digest, tags: &[String], manifest: &Manifest, layers: &[LayerLine]) {
    let mut fact = |what: &str, text: String| out.marked(Hue::Bold, &format!("{what:<9}"), text);
    fact("version", version.to_string());
    fact("tags", if tags.is_empty() { "-".into() } else { tags.join(", ") });
    fact("created", manifest.created.clone());
    fact("parent", manifest.parent.map_or("-".into(), |p| p.to_string()));
    if !manifest.message.is_empty() {
        fact("message", manifest.message.trim_end().replace('\n', "\n         "));
    }
    for (key, value) in &manifest.annotations {
        fact("word", format!("{key}={value}"));
    }
    fact("paths", manifest.paths.to_string());
    fact("size", format!("{} ({} bytes)", size(manifest.bytes), manifest.bytes));
    for (at, layer) in layers.iter().enumerate() {
        let what = format!("layer {}", at + 1);
        fact(
            &what,
            format!(
                "{:<5} {}, {}, {}",
                kind(at),
                layer.digest.short(),
                count(u64::from(layer.paths), "path"),
                size(layer.object_bytes)
            ),
        );
    }
}

fn show_json(
    version: &Digest,
    tags: &[String],
    manifest: &Manifest,
    layers: &[LayerLine],
    files: &Option<Vec<FileLine>>,
) -> Value {
    let layers: Vec<Value> = layers
        .iter()
        .enumerate()
        .map(|(at, l)| {
            json!({
                "digest": l.digest,
                "kind": kind(at),
                "paths": l.paths,
                "bytes": l.object_bytes,
                "index_bytes": l.index_bytes,
            })
        })
        .collect();
    let mut out = json!({
        "version": version,
        "tags": tags,
        "created": manifest.created,
        "parent": manifest.parent,
        "message": manifest.message,
        "annotations": manifest.annotations,
        "paths": manifest.paths,
        "bytes": manifest.bytes,
        "layers": layers,
    });
    if let (Some(files), Some(out)) = (files, out.as_object_mut()) {
        out.insert("files".into(), files.iter().map(FileLine::json).collect());
    }
    out
}

/// Every path of a tree with its node in order of names, parents before children; the root first.
fn walk(tree: &Index) -> Result<Vec<(Vec<u8>, Node)>> {
    let mut out = Vec::new();
    let mut todo = vec![(Vec::new(), tree.node(ROOT)?)];
    while let Some((path, node)) = todo.pop() {
        for at in tree.children(&node)?.rev() {
            let child = tree.child(&node, at)?;
            todo.push((crate::layer::model::join(&path, tree.name(&child)?), child));
        }
        out.push((path, node));
    }
    Ok(out)
}

/// A path as `ls -l` shows it.
struct FileLine {
    path: Vec<u8>,
    node: Node,
    object: Option<Digest>,
    target: Option<Vec<u8>>,
}

fn file(tree: &Index, path: Vec<u8>, node: &Node) -> Result<FileLine> {
    let target = match node.format() == libc::S_IFLNK {
        true => Some(tree.target(node)?.to_vec()),
        false => None,
    };
    let object = if node.is_file() { Some(tree.object(node)?) } else { None };
    Ok(FileLine { path, node: *node, object, target })
}

impl FileLine {
    fn line(&self, out: &mut Text) {
        let n = &self.node;
        let size = match n.format() {
            libc::S_IFCHR | libc::S_IFBLK => format!("{},{}", n.rdev().0, n.rdev().1),
            _ => n.size.to_string(),
        };
        let before = format!(
            "{} {:>3} {:>5} {:>5} {size:>11} {} ",
            mode_letters(n.mode),
            n.nlink,
            n.uid,
            n.gid,
            time_text(n.mtime.sec)
        );
        let mut path = b"/".to_vec();
        path.extend_from_slice(&self.path);
        if let Some(target) = &self.target {
            path.extend_from_slice(b" -> ");
            path.extend_from_slice(target);
        }
        out.path_line(None, &before, &path);
    }

    fn json(&self) -> Value {
        let n = &self.node;
        let mut path = b"/".to_vec();
        path.extend_from_slice(&self.path);
        let mut out = path_json(&path);
        let mut put = |key: &str, value: Value| out.insert(key.into(), value);
        put("type", json!(type_word(n.format())));
        put("mode", json!(format!("{:04o}", n.mode & 0o7777)));
        put("nlink", json!(n.nlink));
        put("uid", json!(n.uid));
        put("gid", json!(n.gid));
        put("bytes", json!(n.size));
        put("mtime", json!(time_text(n.mtime.sec)));
        if let Some(object) = self.object {
            put("object", json!(object));
        }
        if let Some(target) = &self.target {
            put("target", json!(String::from_utf8_lossy(target)));
        }
        if matches!(n.format(), libc::S_IFCHR | libc::S_IFBLK) {
            put("rdev", json!([n.rdev().0, n.rdev().1]));
        }
        Value::Object(out)
    }
}

fn type_word(format: u32) -> &'static str {
    match format {
        libc::S_IFDIR => "directory",
        libc::S_IFREG => "file",
        libc::S_IFLNK => "symlink",
        libc::S_IFCHR => "char",
        libc::S_IFBLK => "block",
        libc::S_IFIFO => "fifo",
        libc::S_IFSOCK => "socket",
        _ => "unknown",
    }
}

/// As `ls -l`: type, permissions, with `s`, `S`, `t` and `T`.
fn mode_letters(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    let mut out = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (mode & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
        });
    }
    out
}

/// RFC 3339 in UTC; the plain number of seconds where a year does not fit (before 1970, after 9999).
fn time_text(seconds: i64) -> String {
    const YEAR_10000: i64 = 253_402_300_800;
    match u64::try_from(seconds) {
        Ok(s) if seconds < YEAR_10000 => {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(s);
            humantime::format_rfc3339_seconds(time).to_string()
        }
        _ => seconds.to_string(),
    }
}

pub fn diff(ui: &Ui, store: &Store, args: &Diff) -> Done {
    let (old, new): (VersionName, VersionName) = (args.old.parse()?, args.new.parse()?);
    let _held = store.in_use()?;
    let open = |name: &VersionName| stack::open_tree(store, &store.version(&store.resolve(name)?)?);
    let (old, new) = (open(&old)?, open(&new)?);
    let mut changes = diff::diff(&old, &new)?;
    for change in &mut changes {
        change.path.insert(0, b'/');
    }
    ui.answer(
        || {
            let one = |c: &diff::Change| {
                let mut out = path_json(&c.path);
                out.insert("letter".into(), json!(c.kind.letter()));
                Value::Object(out)
            };
            changes.iter().map(one).collect()
        },
        |out| {
            for c in &changes {
                out.path_line(Some(hue(c.kind)), &format!("{} ", c.kind.letter()), &c.path);
            }
        },
    )?;
    Ok(0)
}

fn hue(kind: Kind) -> Hue {
    match kind {
        Kind::Added => Hue::Green,
        Kind::Removed => Hue::Red,
        Kind::Content | Kind::Metadata | Kind::Type => Hue::Yellow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_times_are_written_as_ls_writes_them() {
        assert_eq!(mode_letters(libc::S_IFREG | 0o4755), "-rwsr-xr-x");
        assert_eq!(mode_letters(libc::S_IFDIR | 0o1777), "drwxrwxrwt");
        assert_eq!(mode_letters(libc::S_IFREG | 0o7644), "-rwSr-Sr-T");
        assert_eq!(time_text(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_text(-1), "-1");
        assert_eq!(time_text(i64::MAX), i64::MAX.to_string());
    }
}
