# The machine that box's image is made in: a base disk is booted, provisioned over SSH, and shut down.
# Whatever differs from host to host stands in machine.auto.pkrvars.hcl.

variable "base_disk" {
  type        = string
  description = "The qcow2 disk to start from; it is not written to."
}

variable "base_sha256" {
  type        = string
  description = "Its SHA-256."
}

variable "payload" {
  type        = string
  description = "The payload disc: the linked conda environments."
}

variable "acceleration" {
  type        = string
  description = "QEMU's -accel: kvm, or tcg,thread=multi for software emulation."
}

variable "cpu" {
  type        = string
  description = "QEMU's -cpu."
}

variable "cpus" {
  type        = number
  description = "How many processors the machine has."
}

variable "memory_mib" {
  type        = number
  description = "Its memory, in MiB."
}

variable "qemu" {
  type        = string
  description = "QEMU's program."
}

variable "ansible_playbook" {
  type        = string
  description = "The ansible-playbook of ansible-core."
}

variable "ssh_timeout" {
  type        = string
  description = "How long the machine may take from power-on to its first login."
  default     = "20m"
}

variable "console_log" {
  type        = string
  description = "Where the serial console is written; empty: console.log in this folder."
  default     = ""
}

locals {
  console_log = var.console_log != "" ? var.console_log : "${path.root}/console.log"
}

source "qemu" "machine" {
  # The disk is an overlay on the base: nothing is copied, and the base stays as it is.
  disk_image       = true
  use_backing_file = true
  skip_resize_disk = true
  skip_compaction  = true
  iso_url          = "file://${var.base_disk}"
  iso_checksum     = "sha256:${var.base_sha256}"
  format           = "qcow2"
  disk_size        = "4096M"
  output_directory = "${path.root}/disk"
  vm_name          = "box.qcow2"
  qemu_img_args {
    # Packer before its QEMU plugin 1.0.2 leaves the backing format out, which qemu-img 6.1 and later refuse.
    create = ["-F", "qcow2"]
  }

  # Nobody types at this machine: no display, no boot command, no virtual screen to look for.
  headless         = true
  disable_vnc      = true
  boot_wait        = "1s"
  communicator     = "ssh"
  ssh_username     = "root"
  ssh_timeout      = var.ssh_timeout
  # sshd may answer before cloud-init has let the key in.
  ssh_handshake_attempts = 200
  ssh_private_key_file   = "${path.root}/ssh/id_ed25519"
  # Over the connection that is open: the last role has removed the key. Stopping each unit would write to the
  # sealed disk again (the journal, a random seed); --force ends programs and unmounts the file systems.
  shutdown_command = "systemctl poweroff --force"
  shutdown_timeout = "5m"

  qemu_binary = var.qemu
  memory      = var.memory_mib
  cpus        = var.cpus
  # Said in qemuargs: Packer's own choice takes KVM wherever its device opens, and cannot say thread=multi.
  accelerator  = "none"
  machine_type = "q35,sata=off,smbus=off,usb=off,vmport=off"
  qemuargs = [
    ["-accel", var.acceleration],
    ["-cpu", var.cpu],
    ["-nodefaults"],
    ["-no-reboot"],
    ["-pidfile", "${path.root}/qemu.pid"],
    # QEMU takes a comma for the end of an option, and a doubled one for a comma.
    ["-serial", "file:${replace(local.console_log, ",", ",,")}"],
    ["-netdev", "user,id=user.0,hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22"],
    ["-device", "virtio-net-pci,netdev=user.0,romfile="],
    ["-device", "virtio-rng-pci"],
    # werror: where the host's disk is full, the machine sees errors; QEMU would else stop it and wait for ever.
    ["-drive", "if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap,detect-zeroes=unmap,werror=report,file=${replace(path.root, ",", ",,")}/disk/box.qcow2"],
    ["-device", "virtio-blk-pci,drive=disk,bootindex=1"],
    ["-drive", "if=none,id=seed,format=raw,readonly=on,file=${replace(path.root, ",", ",,")}/seed.iso"],
    ["-device", "virtio-blk-pci,drive=seed,serial=seed"],
    ["-drive", "if=none,id=payload,format=raw,readonly=on,file=${replace(var.payload, ",", ",,")}"],
    ["-device", "virtio-blk-pci,drive=payload,serial=payload"],
  ]
}

build {
  sources = ["source.qemu.machine"]

  provisioner "ansible" {
    playbook_file = "${path.root}/playbook/site.yml"
    command       = var.ansible_playbook
    user          = "root"
    # Straight to the machine's SSH: Packer's proxy in between costs time and offers keys that OpenSSH refuses.
    use_proxy     = false
    ansible_env_vars = [
      "ANSIBLE_CONFIG=${path.root}/playbook/ansible.cfg",
      "LC_ALL=C.UTF-8",
    ]
  }
}
