"""The servers that are compared, each a program that takes orders on its standard input."""
