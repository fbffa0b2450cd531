# What belongs to this host. Packer reads this file by its name.
base_disk        = "/cache/base.qcow2"
base_sha256      = "1111111111111111111111111111111111111111111111111111111111111111"
payload          = "/cache/payload.iso"
acceleration     = "tcg,thread=multi"
cpu              = "max,-svm,-la57"
cpus             = 2
memory_mib       = 2048
qemu             = "qemu-system-x86_64"
ansible_playbook = "/venv/bin/ansible-playbook"
