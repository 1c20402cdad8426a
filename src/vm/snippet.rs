//! What libvirt needs to know of a desktop's root.

use std::path::Path;

use super::{Cache, machine};

/// The parts of a domain's XML, and the kernel's command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// `<metadata>`: by it the hook of libvirt knows which desktop to mount.
    pub metadata: String,
    /// `<memoryBacking>`: virtiofsd reads and writes the guest's memory.
    pub memory: String,
    /// `<filesystem>`, to stand in `<devices>`.
    pub filesystem: String,
    /// For `<cmdline>` in `<os>`, and for any boot loader.
    pub command_line: String,
}

/// Makes them for a desktop of `store` that is mounted at `mountpoint`; `virtiofsd` where it is not libvirt's own choice.
pub fn snippet(
    store: &Path,
    desktop: &str,
    mountpoint: &Path,
    virtiofsd: Option<&Path>,
    cache: Cache,
    append: &[String],
) -> Snippet {
    let metadata = format!(
        "<metadata>
  <reroot:desktop xmlns:reroot='urn:reroot:desktop' name='{}' store='{}'/>
</metadata>",
        escaped(desktop),
        escaped(&store.to_string_lossy())
    );
    let memory = "<memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n</memoryBacking>";
    let path = virtiofsd.map_or(String::new(), |p| format!(" path='{}'", escaped(&p.to_string_lossy())));
    // libvirt has no word for virtiofsd's own way, `auto`.
    let cache = match cache {
        Cache::Auto => "",
        Cache::Always => "\n    <cache mode='always'/>",
    };
    let filesystem = format!(
        "<filesystem type='mount' accessmode='passthrough'>
  <driver type='virtiofs' queue='1024'/>
  <binary{path} xattr='on'>{cache}
    <sandbox mode='chroot'/>
  </binary>
  <source dir='{}'/>
  <target dir='{}'/>
</filesystem>",
        escaped(&mountpoint.to_string_lossy()),
        machine::TAG,
    );
    Snippet { metadata, memory: memory.into(), filesystem, command_line: machine::command_line(append) }
}

/// Text as the value of an attribute or the content of an element in XML.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '\'' => out.push_str("&apos;"),
            c if c.is_control() => out.push_str(&format!("&#{};", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_end_its_attribute() {
        let s = snippet(Path::new("/s"), "d", Path::new("/a'b<c&d"), None, Cache::Auto, &[]);
        assert!(s.filesystem.contains("<source dir='/a&apos;b&lt;c&amp;d'/>"), "{}", s.filesystem);
        assert!(s.filesystem.contains("<binary xattr='on'>"), "{}", s.filesystem);
    }
}
