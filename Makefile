# make demo      watch a rollback of a live Debian desktop (as root, about five minutes)
# make test      everything that a change must pass; make test ARGS="--test NAME FILTER" runs a part
# make soak      the long versions of the tests that draw lots: crashes, power cuts, fsx, and the reference model with
#                very many sequences, other ones than `make test`; FIRST= and SEQUENCES= choose
# make bench     comparisons with the kernel's overlayfs and fuse-overlayfs
# make install   program, man pages, completions, mount helpers; honours PREFIX and DESTDIR
# make clean     removes what was built

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
ARGS ?=
FIRST ?= 100000
SEQUENCES ?= 200000
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Made by the build: man pages and completions.
GEN := $(TARGET)/gen

BINDIR = $(DESTDIR)$(PREFIX)/bin
SHAREDIR = $(DESTDIR)$(PREFIX)/share
# mount(8) looks for its helpers in /sbin only, and systemd for units in /etc and /usr/lib.
SBINDIR ?= $(DESTDIR)/sbin
UNITDIR ?= $(DESTDIR)$(PREFIX)/lib/systemd/system
LIBEXECDIR ?= $(DESTDIR)$(PREFIX)/lib/reroot
# What makes an initramfs looks there only.
INITRAMFSDIR ?= $(DESTDIR)/usr/share/initramfs-tools
DRACUTDIR ?= $(DESTDIR)/usr/lib/dracut/modules.d
# So does libvirt.
LIBVIRTDIR ?= $(DESTDIR)/etc/libvirt

export CARGO

.PHONY: build demo test soak bench install clean

build:
	$(CARGO) build --release

demo: build
	./scripts/setup demo
	REROOT=$(TARGET)/release/reroot ./demo/run

test:
	./scripts/setup test
	./scripts/test $(ARGS)

soak:
	./scripts/setup test
	REROOT_CRASHES=5000 REROOT_POWER_CUTS=300 REROOT_FSX_SEEDS=20 REROOT_EXERCISES=40 \
	  ./scripts/test --test crash --test blocks --test suites --test weather
	REROOT_MODEL_FIRST=$(FIRST) REROOT_MODEL_SEQUENCES=$(SEQUENCES) ./scripts/test --test model -- --nocapture --include-ignored

bench: build
	./scripts/setup bench
	$(CARGO) bench $(ARGS)

install: build
	install -D -m 0755 $(TARGET)/release/reroot $(BINDIR)/reroot
	@set -e; for page in $(GEN)/man/*; do [ -f "$$page" ] || continue; \
	  install -D -v -m 0644 "$$page" "$(SHAREDIR)/man/man$${page##*.}/$${page##*/}"; done
	install -D -m 0644 docs/mount.fuse.reroot.8 $(SHAREDIR)/man/man8/mount.fuse.reroot.8
	@set -e; for name in mount.reroot umount.fuse.reroot; do \
	  echo ".so man8/mount.fuse.reroot.8" >"$(SHAREDIR)/man/man8/$$name.8"; done
	@set -e; for file in $(GEN)/completions/*; do [ -f "$$file" ] || continue; case "$$file" in \
	  */reroot) install -D -v -m 0644 "$$file" $(SHAREDIR)/bash-completion/completions/reroot ;; \
	  *.fish) install -D -v -m 0644 "$$file" $(SHAREDIR)/fish/vendor_completions.d/reroot.fish ;; \
	  */_*)   install -D -v -m 0644 "$$file" $(SHAREDIR)/zsh/site-functions/_reroot ;; esac; done
	@set -e; for file in mount-helpers/*; do [ -f "$$file" ] || continue; name="$${file##*/}"; case "$$name" in \
	  mount.*|umount.*) install -D -v -m 0755 "$$file" "$(SBINDIR)/$$name" ;; \
	  *.service|*.socket|*.timer|*.target|*.mount|*.path) install -D -v -m 0644 "$$file" "$(UNITDIR)/$$name" ;; \
	  *.md) install -D -v -m 0644 "$$file" "$(SHAREDIR)/doc/reroot/$$name" ;; \
	  *) if [ -x "$$file" ]; then mode=0755; else mode=0644; fi; \
	     install -D -v -m $$mode "$$file" "$(LIBEXECDIR)/$$name" ;; esac; done
	@set -e; cd mount-helpers; for file in $$(find initramfs-tools dracut libvirt -type f); do case "$$file" in \
	  dracut/*) install -D -v -m 0755 "$$file" "$(DRACUTDIR)/$${file#dracut/}" ;; \
	  libvirt/*) install -D -v -m 0755 "$$file" "$(LIBVIRTDIR)/hooks/qemu.d/$${file#libvirt/}" ;; \
	  *) install -D -v -m 0755 "$$file" "$(INITRAMFSDIR)/$${file#initramfs-tools/}" ;; esac; done

clean:
	$(CARGO) clean
