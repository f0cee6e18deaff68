"""What a router did with the evaluation rows: where they went, how sure it was, and what gave them away."""
