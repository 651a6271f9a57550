"""Backend adapters: each turns a call into one server's language and its answer back; bytes in, bytes out, no I/O."""
