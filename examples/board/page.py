"""Makes a page of a text: its first line is the title, and what is parted by empty lines are paragraphs."""

import html
import pathlib
import sys

source, target = map(pathlib.Path, sys.argv[1:])
title, *paragraphs = (" ".join(part.split()) for part in source.read_text().split("\n\n"))
body = "".join(f"<p>{html.escape(text)}</p>" for text in paragraphs)
target.parent.mkdir(parents=True, exist_ok=True)
target.write_text(f"<!doctype html><title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>{body}\n")
print(f"{target}: {len(paragraphs)} paragraphs")
