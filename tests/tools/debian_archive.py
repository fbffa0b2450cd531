"""Makes a small Debian archive for tests: packages without files, an index as Debian has it, a signature."""

from __future__ import annotations

from pathlib import Path

from conda_appliance import process, resources


class Archive:
    """An archive in ``folder/debian`` with the suite trixie, whose index has the newest version of each package."""

    def __init__(self, folder: Path) -> None:
        self.root, self.keys, self.keyring = folder / "debian", folder / "keys", folder / "keyring.gpg"
        self.newest: dict[str, Path] = {}
        (self.root / "pool").mkdir(parents=True)
        self.keys.mkdir(mode=0o700)
        self._gpg("--quick-generate-key", "Archive of a test <test@example.org>", "ed25519", "sign", "never")
        self._gpg("--export", "--output", str(self.keyring))

    def _gpg(self, *words: str) -> None:
        process.run(["gpg", "--homedir", self.keys, "--batch", "--yes", "--passphrase", "", *words])

    @property
    def url(self) -> str:
        return self.root.as_uri()

    def add(self, name: str, version: str, **fields: str) -> Path:
        """A package with these control fields (``pre_depends`` is Pre-Depends); returns its file."""
        tree = self.root.parent / "tree"
        resources.remove(tree)
        (tree / "DEBIAN").mkdir(parents=True)
        control = {
            "Package": name,
            "Version": version,
            "Architecture": "amd64",
            "Maintainer": "Nobody <nobody@example.org>",
            **{field.title().replace("_", "-"): value for field, value in fields.items()},
            "Description": "of a test",
        }
        (tree / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in control.items()))
        path = self.root / f"pool/{name}_{version}_amd64.deb"
        process.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, path])
        self.newest[name] = path
        return path

    def publish(self) -> None:
        """Write the index of the newest packages, and sign it."""
        suite = self.root / "dists/trixie"
        index = suite / "main/binary-amd64"
        index.mkdir(parents=True, exist_ok=True)
        text = "".join(
            process.run(["apt-ftparchive", "packages", path.relative_to(self.root)], cwd=self.root).stdout
            for path in self.newest.values()
        )
        (index / "Packages").write_text(text)
        (suite / "Release").unlink(missing_ok=True)
        options = {"Suite": "trixie", "Codename": "trixie", "Components": "main", "Architectures": "amd64"}
        words = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in options.items()]
        release = process.run(["apt-ftparchive", *words, "release", suite]).stdout
        (suite / "Release").write_text(release)
        self._gpg("--clearsign", "--output", str(suite / "InRelease"), str(suite / "Release"))
