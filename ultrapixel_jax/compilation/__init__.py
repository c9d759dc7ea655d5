"""From a function to a program: the compiler's options, its cache, programs kept on disk."""
