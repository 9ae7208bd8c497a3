"""The providers: `local`, `pkcs11`, `vault`, `aws`, and those an author brings as "package.module:Class"."""
