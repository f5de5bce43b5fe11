"""What leace-fast refuses, and why: each entry is tested, and a row of docs/refused.md, which is written from here."""
