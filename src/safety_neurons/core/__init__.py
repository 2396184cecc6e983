"""Foundations: errors, files, statistics, processes, plug-ins, tables, progress."""
