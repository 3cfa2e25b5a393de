"""Methods that bootstrap, behind the same door: what the imitation family is measured against.

One file a method or a library.
"""
