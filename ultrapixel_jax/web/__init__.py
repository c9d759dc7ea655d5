"""The web page: `python -m ultrapixel_jax.web`, one model and one queue for whoever opens it.

- `options`: the command line.
- `server`: HTTP, by the standard library: limits, hosts, errors in words.
- `routes`: what each address answers.
- `asks`: what a browser may ask for.
- `studio`: the queue, and the thread that draws.
- `jobs`: what is drawn, as browsers see it. `pace`: how long still.
- `gallery`, `tiles`: pictures of the output directory, as a list and in pieces.
- `reading`: PNG files, whatever they are.
- `page/`: HTML, style and modules of JavaScript as browsers get them; OpenSeadragon with its licence.
"""
