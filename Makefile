# Two commands: `make quickstart` and `make test`. Both install what they need on a fresh Debian 12 (as root, or with sudo).
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# What the host needs, by Debian's names: Python, then what boots, what makes discs and disks, what compiles the starter channel.
HOST := python3 python3-venv ca-certificates openssh-client \
	packer qemu-system-x86 qemu-utils ovmf \
	mmdebstrap debian-archive-keyring apt-utils fdisk e2fsprogs dosfstools mtools \
	grub-common grub-pc-bin grub-efi-amd64-bin squashfs-tools erofs-utils xorriso zstd xz-utils pigz rpm \
	build-essential patchelf

# What only the tests need: another boot loader, for a cloud image that is not ours; another shell, and a critic of ours;
# what reads, unpacks and runs containers; a critic of packages; other readers of discs; what signs an archive of ours; what
# adds and starts Vagrant boxes; what compiles for, emulates and starts machines of linux-aarch64.
TEST_HOST := syslinux syslinux-common busybox-static shellcheck skopeo umoci runc lintian rpmlint genisoimage libarchive-tools p7zip-full gpg \
	vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients dnsmasq-base iptables iproute2 \
	qemu-user-static qemu-system-arm qemu-efi-aarch64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross

# Tests at a time. An emulated machine keeps one processor busy.
JOBS ?= 2
FORM_TESTS := $(addprefix tests/boot/,test_rootfs.py test_forms.py test_boot_discs.py test_discs.py test_vagrant.py)

.PHONY: help quickstart test check unit host emulation install lint forms-table bench docs clean

help: ## show this
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

quickstart: host install ## from a clone to a machine image that booted and passed its checks (images/hello.yaml)
	$(BIN)/conda-appliance build --lock images/hello.yaml

test: HOST += $(TEST_HOST)
test: host emulation install lint ## everything: lint, types, unit tests, real tools, real boots
	$(BIN)/pytest --numprocesses $(JOBS) --no-loadscope-reorder

forms-table: HOST += $(TEST_HOST)
forms-table: host install ## write docs/reference/forms-tested.md from a run of the tests that open and start every form
	$(BIN)/pytest $(FORM_TESTS) --forms-table docs/reference/forms-tested.md

unit: install ## the tests that need no network, root or VM (seconds)
	$(BIN)/pytest tests/unit

lint: install ## ruff and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: host install ## measure ours and other tools making the same machines (hours, as root); bench/results, docs/explanation
	$(SUDO) $(BIN)/python bench/run.py

docs: install ## write the generated pages and the JSON Schema
	$(BIN)/conda-appliance schema --markdown > docs/reference/definition.md
	$(BIN)/conda-appliance schema > docs/reference/definition.schema.json
	$(BIN)/conda-appliance formats --markdown > docs/reference/formats.md

host: ## install the Debian packages that are missing
	@missing=$$(for p in $(HOST); do dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing:" $$missing; \
	  $(SUDO) apt-get update -q && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -q -y --no-install-recommends $$missing; \
	fi

emulation: host ## let this host run programs of linux-aarch64, where it does not yet (a container: systemd does it elsewhere)
	@[ "$$(uname -m)" = aarch64 ] || [ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || { \
	  [ -e /proc/sys/fs/binfmt_misc/register ] || $(SUDO) mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc; \
	  $(SUDO) sh -c 'cat /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register'; }

install: $(BIN)/.installed ## put conda-appliance and its libraries into .venv

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --use-pep517 -c constraints.txt -e '.[dev]'
	@touch $@

clean: ## remove the venv, caches and leftovers; results in out/ stay
	[ ! -x $(BIN)/conda-appliance ] || $(BIN)/conda-appliance clean
	rm -rf $(VENV) .mypy_cache .ruff_cache
