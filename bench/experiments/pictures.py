def draw_all(found): pass
