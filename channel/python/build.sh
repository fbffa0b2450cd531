#!/bin/sh
# Compiles CPython for an environment whose place is not known yet. Reads from the environment:
#   SOURCE   the unpacked source tree          SYSROOT  where the libraries' headers and .so files are
#   PREFIX   a long placeholder path, which whoever links the package replaces by the real prefix
#   STAGE    where to install: files land below $STAGE$PREFIX
#   TRIPLET  the platform that it is for, as folders of libraries are named
#   BUILD_PYTHON  for another platform than this host's: the same version's interpreter for this host
#   JOBS     compilers to run side by side
set -eu
cd "$SOURCE"
libdir="$SYSROOT/usr/lib/$TRIPLET"
export CPPFLAGS="-I$SYSROOT/usr/include -I$SYSROOT/usr/include/$TRIPLET"
export LDFLAGS="-L$libdir -Wl,-rpath-link,$libdir"
strip=strip
set --
if [ -n "$BUILD_PYTHON" ]; then
  export CC="$TRIPLET-gcc" AR="$TRIPLET-ar" READELF="$TRIPLET-readelf"
  strip="$TRIPLET-strip"
  # What configure would find out by running a program.
  set -- --build="$(gcc -dumpmachine)" --host="$TRIPLET" --with-build-python="$BUILD_PYTHON" \
    ac_cv_file__dev_ptmx=yes ac_cv_file__dev_ptc=no ac_cv_buggy_getaddrinfo=no
else
  # The build imports each module it made, to see that it works.
  export LD_LIBRARY_PATH="$libdir"
fi
export PKG_CONFIG=false
export LIBFFI_CFLAGS="$CPPFLAGS" LIBFFI_LIBS="-lffi"
# Debug information would name this build's folders, and is stripped below.
export OPT="-DNDEBUG -O3 -Wall"
# No profile-guided build: it would triple the time. No tests, no pip: neither belongs on an appliance.
./configure --quiet --prefix="$PREFIX" --with-openssl="$SYSROOT/usr" --with-readline=readline \
  --without-ensurepip --disable-test-modules --with-dbmliborder= \
  ax_cv_c_float_words_bigendian=no "$@"
make -s -j"$JOBS"
# Byte code is compiled when the package is written: -l keeps this to the top folder, which is removed below.
make -s -j"$JOBS" install DESTDIR="$STAGE" COMPILEALL_OPTS=-l

root="$STAGE$PREFIX"
version=$(ls "$root/lib" | sed -n 's/^python\(3\.[0-9]*\)$/\1/p')
lib="$root/lib/python$version"
ln -sf "python$version" "$root/bin/python"
for module in _ssl _hashlib _sqlite3 _ctypes _lzma _bz2 readline _curses _uuid zlib; do
  ls "$lib"/lib-dynload/$module.*.so >/dev/null || { echo "the module $module was not built" >&2; exit 1; }
done
rm -rf "$lib/test" "$lib/idlelib" "$lib/turtledemo" "$lib/ensurepip" "$lib"/config-*/libpython*.a "$lib"/config-*/*.o "$root"/bin/idle3*
rm -rf "$root/share" "$root/lib"/libpython*.a
find "$root" -name __pycache__ -prune -exec rm -rf {} +
find "$root/bin" "$lib/lib-dynload" -type f | while read -r file; do
  if [ "$(head -c 4 "$file" | tr -d '\177')" = ELF ]; then
    "$strip" --strip-unneeded "$file"
    case $file in
      */lib-dynload/*) patchelf --set-rpath '$ORIGIN/../..' "$file" ;;
      # RPATH and not RUNPATH: libraries that modules load from anywhere (numpy's C++ runtime) are then looked for here too.
      *) patchelf --force-rpath --set-rpath '$ORIGIN/../lib' "$file" ;;
    esac
  fi
done
# What sysconfig tells builders of extensions must not name this build's folders.
grep -rlIF -e "$SYSROOT" -e "$SOURCE" "$root" | while read -r file; do
  sed -i -e "s|$SYSROOT/usr|$PREFIX|g; s|$SYSROOT|$PREFIX|g; s|$SOURCE|.|g" "$file"
done
